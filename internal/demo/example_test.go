package demo_test

import (
	"context"
	"fmt"
	"os"

	"github.com/interlock-energy/ota/internal/demo"
)

func ExampleRun() {
	s, err := demo.Run(context.Background(), demo.Config{Out: os.Stdout})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, d := range s.Devices {
		fmt.Println(d.Device, "was to end on", d.Want, "and ended on", d.Got)
	}
}
