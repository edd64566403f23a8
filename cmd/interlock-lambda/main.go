// Command interlock-lambda is the AWS Lambda function that gives releases in a
// bucket to devices. It is built as "bootstrap" for the runtime provided.al2023,
// by scripts/lambda-zip, and configured by its environment: see package
// internal/lambda for paths and variables, and deploy/aws for a template.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/interlock-energy/ota/internal/buildinfo"
	function "github.com/interlock-energy/ota/internal/lambda"
)

var version string // set by the build; see package buildinfo

func main() {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	slog.SetDefault(log)
	a, err := function.FromEnvironment(context.Background(), os.Getenv, log)
	if err != nil {
		log.Error("the function cannot start", "error", err.Error())
		tellInitError(os.Getenv("AWS_LAMBDA_RUNTIME_API"), err)
		os.Exit(1)
	}
	v, _ := buildinfo.Version(version)
	log.Info("started", "version", v)
	lambda.Start(a)
}

// tellInitError says to Lambda why the function cannot start ("Initialization
// error" of the runtime API), so that whoever invokes it sees the reason and not
// only that the process ended.
func tellInitError(api string, cause error) {
	body, err := json.Marshal(map[string]any{"errorMessage": cause.Error(), "errorType": "Interlock.Configuration", "stackTrace": []string{}})
	if api == "" || err != nil {
		return
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+api+"/2018-06-01/runtime/init/error", bytes.NewReader(body))
	if err != nil {
		return
	}
	req.Header.Set("Content-Type", "application/vnd.aws.lambda.error+json")
	req.Header.Set("Lambda-Runtime-Function-Error-Type", "Interlock.Configuration")
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{}} // no proxy on the way to it
	if resp, err := client.Do(req); err == nil {
		resp.Body.Close()
	}
}
