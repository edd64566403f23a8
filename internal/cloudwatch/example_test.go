package cloudwatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/interlock-energy/ota/internal/awscred"
	"github.com/interlock-energy/ota/internal/cloudwatch"
	"github.com/interlock-energy/ota/internal/logfile"
)

// Example shows how an agent logs to the console and to CloudWatch.
func Example() {
	console := slog.NewTextHandler(os.Stderr, nil)
	creds, err := awscred.FromEnv(func(string) string { return "example" })
	if err != nil {
		fmt.Println(err)
		return
	}
	w, err := cloudwatch.Open(cloudwatch.Config{
		Stream: "bess-7", Region: "eu-central-1", Credentials: creds,
		Dir: os.TempDir() + "/bess-7-log", // on the device: /var/lib/interlock/cloudwatch
		Changed: func(err error) {
			if err != nil {
				slog.New(console).Warn("CloudWatch does not take the log", "err", err)
			}
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	log := slog.New(logfile.Tee(console, w.Handler()))
	ctx, stop := context.WithCancel(context.Background())
	go w.Run(ctx)
	log.Debug("this is below the level")
	stop() // the agent ends

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		fmt.Println(err)
	}
	// Output:
}

func ExampleDiagnostics() {
	text, err := cloudwatch.Diagnostics{
		Device: "bess-7", Running: "2.1.0", Time: time.Unix(1_800_000_000, 0),
		Readings: []cloudwatch.Reading{{Name: "soc", Value: 55, Unit: "%"}},
	}.Metrics("").EMF()
	if err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%.60s...\n", text)
	// Output: {"_aws":{"Timestamp":1800000000000,"CloudWatchMetrics":[{"Na...
}
