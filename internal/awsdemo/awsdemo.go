// Package awsdemo shows the whole path without a server of ours, in one test that
// is also "make aws-demo": releases are published to an S3 server, the Lambda
// function gives them out behind an API Gateway, and devices update themselves.
//
// Real are the programs interlock, interlockd and interlock-lambda, the S3 server
// (versitygw, which checks signatures, and the end of presigned URLs), the runtime
// API that feeds the function, TLS everywhere, the battery's SunSpec over Modbus, and
// the firmware, a process that says its version. What stands for AWS are the gateways of
// internal/lambda/lambdatest, the simulated battery for a battery, and the two test
// clients of internal/original for devices in the field.
package awsdemo
