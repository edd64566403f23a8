package uds_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/interlock-energy/ota/bus/uds"
)

// thermometer serves one value.
type thermometer struct{}

func (thermometer) ReadData(ctx context.Context, call uds.Call, did uds.DID) ([]byte, error) {
	if did != 0xFD01 {
		return nil, uds.RequestOutOfRange
	}
	return []byte{25}, nil
}

// A server and a client, on a line in memory. On a CAN bus, the connections come from
// package isotp.
func Example() {
	tester, device := newPipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	server := &uds.Server{Handler: thermometer{}}
	go func() { done <- server.Serve(ctx, uds.Tester{Name: "F1", Conn: device}) }()

	client := uds.NewClient(tester, uds.ClientConfig{})
	data, err := client.ReadData(ctx, 0xFD01)
	fmt.Println(data, err)
	_, err = client.ReadData(ctx, 0xF195)
	fmt.Println(errors.Is(err, uds.RequestOutOfRange), err)

	client.Close()
	cancel()
	fmt.Println(<-done)
	// Output:
	// [25] <nil>
	// true ReadDataByIdentifier (22) refused: request out of range (NRC 31)
	// <nil>
}

// A transfer: what a block carries is what the server allows, and its counter goes on
// from 255 to 0.
func ExampleClient_TransferData() {
	send := func(ctx context.Context, client *uds.Client, image []byte) error {
		size, err := client.RequestDownload(ctx, uds.DownloadRequest{Size: uint64(len(image))})
		if err != nil {
			return err
		}
		counter := byte(1)
		for len(image) > 0 {
			n := min(size, len(image))
			if _, err := client.TransferData(ctx, counter, image[:n]); err != nil {
				return err // RequestSequenceError, WrongBlockSequenceCounter: from the beginning
			}
			image, counter = image[n:], counter+1
		}
		_, err = client.TransferExit(ctx, nil)
		return err
	}
	_ = send
}

func ExampleNRC() {
	err := fmt.Errorf("the cells have -12 degrees: %w", uds.TemperatureTooLow)
	fmt.Println(errors.Is(err, uds.TemperatureTooLow), uds.TemperatureTooLow)
	// Output:
	// true temperature too low (NRC 87)
}
