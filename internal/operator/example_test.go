package operator_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/operator"
)

func ExampleNew() {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(api.DevicesResponse{Devices: []api.Device{
			{Head: api.Head{Device: "bess-03", Version: "1.0.0"}, Waiting: true, Why: "waits: state of charge 22.0 %, want at least 30 %"},
		}})
	}))
	defer server.Close()

	c, err := operator.New(operator.Config{
		URL:   server.URL,
		Token: "an operator's token",
		CA:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	devices, err := c.Devices(context.Background(), "", "", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, d := range devices {
		fmt.Println(d.Device, "runs", d.Version, "and", d.Why)
	}
	// Output: bess-03 runs 1.0.0 and waits: state of charge 22.0 %, want at least 30 %
}
