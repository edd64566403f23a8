// Package awstest stands in for the parts of AWS that a device talks to, so that
// a device's program can be tested on a machine without an AWS account: AWS IoT
// Core's broker, Jobs and MQTT file streams, the credential provider, and
// CloudWatch Logs. For people who build devices with this library, or with any
// other client of these services: everything is spoken over real sockets.
//
//	ca := awstest.NewCA(t)
//	jobs := awstest.NewJobs(awstest.JobsOptions{})
//	broker := awstest.StartBroker(t, ca, jobs)
//	... start the device with broker.Addr() and ca.Thing("controller-7") ...
//	jobs.Create(awstest.Job{ID: "update-1", Things: []string{"controller-7"}, Document: `{"version":"2.1.0"}`})
//	e, err := jobs.Wait(ctx, "controller-7", "update-1", awstest.Succeeded)
//
// # What it is, and what it is not
//
// These are imitations, written from AWS's documentation and from payloads that
// others captured from the real service; they were never run beside the real
// service. Where the documentation leaves a choice, they take the one that is
// harder for a device (the smaller limit, the timer that is not extended), and
// the comment says so. They know one account and one region, no policies but
// "a thing may use its own topics", no thing groups, no schedules, no rollout rate
// and no abort rules of a job, no HTTP data plane of Jobs, no shadows and no rules.
// They keep everything in memory. A device that works here has the protocol right;
// it is not thereby tested against AWS.
//
// [StartBroker] can lose, double, delay and cut at any message, and keeps a log of
// everything that went over it. The same services can be put behind any other
// broker with [ServeClient]; [StartMosquitto] starts one.
package awstest
