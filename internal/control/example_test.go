package control_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota"
	"github.com/interlock-energy/ota/internal/control"
)

func Example() {
	agent, err := control.Dial("/nowhere/interlockd.sock")
	if errors.Is(err, ota.ErrStopped) {
		fmt.Println("no agent runs here")
		return
	}
	defer agent.Close()
	result, err := agent.Command(context.Background(), control.Install, true)
	if errors.Is(err, ota.ErrNotNow) {
		fmt.Println("it will be installed as soon as it is safe:", err)
	}
	fmt.Println(result.Status.Snapshot.Status)
	// Output: no agent runs here
}
