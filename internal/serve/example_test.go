package serve_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/interlock-energy/ota/internal/operator"
	"github.com/interlock-energy/ota/internal/serve"
	"github.com/interlock-energy/ota/internal/web"
)

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	s, err := serve.Open(serve.Config{Data: dir, Listen: "127.0.0.1:0",
		Web: web.Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()

	c, err := operator.New(operator.Config{URL: s.URL, CA: s.CA, Token: s.Tokens.Operator})
	if err != nil {
		fmt.Println(err)
		return
	}
	groups, err := c.Groups(ctx)
	fmt.Println(groups[0].Name, err)
	c.Close()
	stop()
	fmt.Println(<-ended)
	// Output:
	// default <nil>
	// <nil>
}
