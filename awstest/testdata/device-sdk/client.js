// Runs one job to its end with AWS's device SDK for JavaScript (MQTT 3.1.1).
// usage: node client.js host port ca cert key thing; ends when its input does, as
// the SDK does not tell when an update has been accepted
const awsIot = require('aws-iot-device-sdk');
const [host, port, caPath, certPath, keyPath, thing] = process.argv.slice(2);
const fail = what => err => {
  if (err) {
    console.error(what, err.message || err);
    process.exit(1);
  }
};
const jobs = awsIot.jobs({ host, port: Number(port), caPath, certPath, keyPath, clientId: thing });
jobs.on('error', fail('connection'));
jobs.subscribeToJobs(thing, (err, job) => {
  fail('subscribe')(err);
  if (!job || !job.id) return; // the next notification says that nothing is left
  console.log(JSON.stringify({ id: job.id, document: job.document, status: job.status }));
  job.inProgress({ step: 'installing' }, err => {
    fail('inProgress')(err);
    job.succeeded({ step: 'done' }, fail('succeeded'));
  });
});
jobs.startJobNotifications(thing, fail('start'));
process.stdin.on('end', () => process.exit(0)).resume();
