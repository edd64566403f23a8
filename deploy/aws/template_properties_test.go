package aws_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A property is something that must stay true of a template, and the changes that
// would make it untrue.
type property struct {
	file, name string
	want       map[string]string // path: value, as line has it
	breaks     []change
}

const (
	bucket = "Resources.Bucket.Properties."
	stage  = "Resources.ApiStage.Properties."
	fn     = "Resources.Function.Properties."
)

var properties = []property{
	{"template.yaml", "nothing in the bucket is public", map[string]string{
		bucket + "PublicAccessBlockConfiguration": `{"BlockPublicAcls":true,"BlockPublicPolicy":true,"IgnorePublicAcls":true,"RestrictPublicBuckets":true}`,
		bucket + "AccessControl":                  "null", bucket + "WebsiteConfiguration": "null",
	}, []change{
		{bucket + "PublicAccessBlockConfiguration", nil},
		{bucket + "PublicAccessBlockConfiguration.BlockPublicAcls", false},
		{bucket + "PublicAccessBlockConfiguration.BlockPublicPolicy", nil},
		{bucket + "PublicAccessBlockConfiguration.IgnorePublicAcls", "false"},
		{bucket + "PublicAccessBlockConfiguration.RestrictPublicBuckets", nil},
		{bucket + "AccessControl", "PublicRead"},
		{bucket + "WebsiteConfiguration", map[string]any{"IndexDocument": "index.html"}},
	}},
	{"template.yaml", "objects belong to the bucket's owner, whoever uploads them", map[string]string{
		bucket + "OwnershipControls": `{"Rules":[{"ObjectOwnership":"BucketOwnerEnforced"}]}`,
	}, []change{{bucket + "OwnershipControls", nil}, {bucket + "OwnershipControls.Rules.0.ObjectOwnership", "ObjectWriter"}}},
	{"template.yaml", "objects are encrypted at rest", map[string]string{
		bucket + "BucketEncryption.ServerSideEncryptionConfiguration.0.ServerSideEncryptionByDefault.SSEAlgorithm": "AES256",
	}, []change{{bucket + "BucketEncryption", nil}}},
	{"template.yaml", "what is deleted or replaced can be brought back for a while", map[string]string{
		bucket + "VersioningConfiguration": `{"Status":"Enabled"}`,
		bucket + "LifecycleConfiguration.Rules.0": `{"ExpiredObjectDeleteMarker":true,"Id":"old-versions",` +
			`"NoncurrentVersionExpiration":{"NoncurrentDays":{"Ref":"OldVersionDays"}},"Status":"Enabled"}`,
		"Parameters.OldVersionDays.MinValue": "1",
	}, []change{
		{bucket + "VersioningConfiguration", nil}, {bucket + "VersioningConfiguration.Status", "Suspended"},
		{bucket + "LifecycleConfiguration.Rules.0.ExpirationInDays", 30}, {bucket + "LifecycleConfiguration.Rules.0.Status", "Disabled"},
		{"Parameters.OldVersionDays.MinValue", 0},
	}},
	{"template.yaml", "broken uploads are not paid for for ever", map[string]string{
		bucket + "LifecycleConfiguration.Rules.1": `{"AbortIncompleteMultipartUpload":{"DaysAfterInitiation":7},"Id":"broken-uploads","Status":"Enabled"}`,
	}, []change{{bucket + "LifecycleConfiguration", nil}, {bucket + "LifecycleConfiguration.Rules.1.Status", "Disabled"}, {bucket + "LifecycleConfiguration.Rules.1.ExpirationInDays", 7}}},
	{"template.yaml", "the bucket and its policy outlive the stack", map[string]string{
		"Resources.Bucket.DeletionPolicy": "RetainExceptOnCreate", "Resources.Bucket.UpdateReplacePolicy": "Retain",
		"Resources.BucketPolicy.DeletionPolicy": "RetainExceptOnCreate", "Resources.BucketPolicy.UpdateReplacePolicy": "Retain",
	}, []change{
		{"Resources.Bucket.DeletionPolicy", nil}, {"Resources.Bucket.DeletionPolicy", "Delete"}, {"Resources.Bucket.UpdateReplacePolicy", nil},
		{"Resources.BucketPolicy.DeletionPolicy", nil}, {"Resources.BucketPolicy.UpdateReplacePolicy", nil},
	}},
	{"template.yaml", "only this API calls the function", map[string]string{
		"Resources.ApiMayInvoke.Properties": `{"Action":"lambda:InvokeFunction","FunctionName":{"Fn::GetAtt":["Function","Arn"]},"Principal":"apigateway.amazonaws.com",` +
			`"SourceAccount":{"Ref":"AWS::AccountId"},"SourceArn":{"Fn::Sub":"arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${Api}/*/*"}}`,
		fn + "FunctionUrlConfig": "null",
	}, []change{
		{"Resources.ApiMayInvoke.Properties.SourceArn", nil}, {"Resources.ApiMayInvoke.Properties.Principal", "*"},
		{"Resources.ApiMayInvoke.Properties.Action", "lambda:*"}, {"Resources.ApiMayInvoke.Properties.SourceAccount", nil},
	}},
	{"template.yaml", "the API is throttled", map[string]string{
		stage + "DefaultRouteSettings": `{"ThrottlingBurstLimit":{"Ref":"RequestsAtOnce"},"ThrottlingRateLimit":{"Ref":"RequestsPerSecond"}}`,
		stage + "RouteSettings":        "null",
	}, []change{{stage + "DefaultRouteSettings", nil}, {stage + "DefaultRouteSettings.ThrottlingRateLimit", nil}, {stage + "DefaultRouteSettings.ThrottlingBurstLimit", nil}}},
	{"template.yaml", "who asked is written down, and logs end", map[string]string{
		stage + "AccessLogSettings.Fn::If.0":                "HasApiAccessLog",
		stage + "AccessLogSettings.Fn::If.1.DestinationArn": `{"Fn::GetAtt":["ApiLogs","Arn"]}`,
		"Parameters.ApiAccessLog.Default":                   "yes",
		"Resources.ApiLogs.Properties.RetentionInDays":      `{"Ref":"LogDays"}`,
		"Resources.FunctionLogs.Properties.RetentionInDays": `{"Ref":"LogDays"}`,
		fn + "LoggingConfig.LogGroup":                       `{"Ref":"FunctionLogs"}`,
	}, []change{
		{stage + "AccessLogSettings", nil}, {"Parameters.ApiAccessLog.Default", "no"}, {"Resources.ApiLogs.Properties.RetentionInDays", nil}, {"Resources.FunctionLogs.Properties.RetentionInDays", nil},
		{fn + "LoggingConfig", nil},
	}},
	{"template.yaml", "the log has what the function says, and of Lambda what is wrong", map[string]string{
		fn + "LoggingConfig.LogFormat": "JSON", fn + "LoggingConfig.ApplicationLogLevel": "INFO", fn + "LoggingConfig.SystemLogLevel": `{"Ref":"SystemLogLevel"}`,
		"Parameters.SystemLogLevel.Default": "WARN", "Parameters.LogIdle.Default": "yes",
		fn + "Environment.Variables.LOG_IDLE": `{"Fn::If":["HasLogIdle","true","false"]}`,
	}, []change{
		{fn + "LoggingConfig.LogFormat", "Text"}, {fn + "LoggingConfig.ApplicationLogLevel", "ERROR"}, {fn + "LoggingConfig.SystemLogLevel", nil},
		{fn + "Environment.Variables.LOG_IDLE", nil}, {"Parameters.LogIdle.Default", "no"},
	}},
	{"template.yaml", "a name of one's own has TLS 1.2", map[string]string{
		"Resources.Domain.Properties.DomainNameConfigurations.0.SecurityPolicy": "TLS_1_2",
	}, []change{{"Resources.Domain.Properties.DomainNameConfigurations.0.SecurityPolicy", nil}, {"Resources.Domain.Properties.DomainNameConfigurations.0.SecurityPolicy", "TLS_1_0"}}},
	{"template.yaml", "the function is what the zip is built for", map[string]string{
		fn + "Runtime": "provided.al2023", fn + "Architectures": `["arm64"]`, fn + "Handler": "bootstrap", fn + "Code": "../../bin/interlock-lambda.zip",
	}, []change{{fn + "Runtime", "provided.al2"}, {fn + "Architectures", nil}, {fn + "Architectures.0", "x86_64"}}},
	{"template.yaml", "limits of the function can be set, within bounds", map[string]string{
		fn + "MemorySize": `{"Ref":"MemoryMegabytes"}`, fn + "Timeout": `{"Ref":"TimeoutSeconds"}`, "Parameters.TimeoutSeconds.MaxValue": "29",
		fn + "ReservedConcurrentExecutions": `{"Fn::If":["HasReserve",{"Ref":"ReservedConcurrency"},{"Ref":"AWS::NoValue"}]}`,
	}, []change{{fn + "Timeout", nil}, {fn + "MemorySize", nil}, {"Parameters.TimeoutSeconds.MaxValue", 900}, {fn + "ReservedConcurrentExecutions", nil}}},
	{"template.yaml", "the key that signs URLs is in no output and no variable", map[string]string{
		fn + "Environment.Variables.SIGNING_SECRET_ARN": `{"Fn::If":["HasSigningUser",{"Ref":"SigningSecret"},""]}`,
		fn + "Environment.Variables.SIGNING_SECRET":     "null", fn + "Environment.Variables.SIGNING_KEY_ID": "null",
	}, []change{
		{fn + "Environment.Variables.SIGNING_SECRET_ARN", nil},
		{fn + "Environment.Variables.SIGNING_SECRET", map[string]any{"Fn::GetAtt": []any{"SigningKey", "SecretAccessKey"}}},
	}},
	{"template.yaml", "a new key is used at once", map[string]string{
		"Resources.SigningKey.Properties.Serial": `{"Ref":"SigningKeySerial"}`, fn + "Environment.Variables.SIGNING_KEY_SERIAL": `{"Ref":"SigningKeySerial"}`,
	}, []change{{"Resources.SigningKey.Properties.Serial", nil}, {fn + "Environment.Variables.SIGNING_KEY_SERIAL", nil}}},
	{"template.yaml", "devices need a token to check in, unless somebody says otherwise", map[string]string{
		"Parameters.OpenCheckin.Default": "no", "Conditions.HasOpenCheckin": `{"Fn::Equals":[{"Ref":"OpenCheckin"},"yes"]}`,
		fn + "Environment.Variables.OPEN": `{"Fn::If":["HasOpenCheckin","true","false"]}`,
	}, []change{{"Parameters.OpenCheckin.Default", "yes"}, {fn + "Environment.Variables.OPEN", "true"}}},
	{"iot.yaml", "logs of devices outlive the stack, and end", map[string]string{
		"Resources.DeviceLogs.DeletionPolicy": "Retain", "Resources.DeviceLogs.UpdateReplacePolicy": "Retain",
		"Resources.DeviceLogs.Properties.RetentionInDays": `{"Ref":"LogDays"}`,
	}, []change{{"Resources.DeviceLogs.DeletionPolicy", nil}, {"Resources.DeviceLogs.Properties.RetentionInDays", nil}}},
	{"iot.yaml", "credentials of devices are short-lived", map[string]string{
		"Resources.LogRoleAlias.Properties.CredentialDurationSeconds": `{"Ref":"CredentialSeconds"}`,
		"Parameters.CredentialSeconds.Default":                        "3600", "Parameters.CredentialSeconds.MaxValue": "43200",
	}, []change{{"Resources.LogRoleAlias.Properties.CredentialDurationSeconds", nil}, {"Parameters.CredentialSeconds.MaxValue", 86400}}},
}

func (p property) check(tpl template) error {
	for _, path := range slices.Sorted(maps.Keys(p.want)) {
		if got := tpl.text(path); got != p.want[path] {
			return fmt.Errorf("%s: %s is %s, want %s", p.name, path, got, p.want[path])
		}
	}
	return nil
}

func TestProperties(t *testing.T) {
	for _, p := range properties {
		t.Run(p.name, func(t *testing.T) {
			tpl := load(t, p.file)
			if err := p.check(tpl); err != nil {
				t.Error(err)
			}
			for _, c := range p.breaks {
				broken := tpl.clone(t)
				if err := broken.apply(c); err != nil {
					t.Error(err)
				} else if p.check(broken) == nil {
					t.Errorf("nobody noticed: %v", c)
				}
			}
		})
	}
}

// alarms says of each alarm what it watches, and when it rings.
func alarms(tpl template) map[string]string {
	out := map[string]string{}
	for name, r := range tpl.at("Resources").(map[string]any) {
		if at := "Resources." + name + "."; r.(map[string]any)["Type"] == "AWS::CloudWatch::Alarm" {
			var words []string
			for _, key := range []string{"Namespace", "MetricName", "Dimensions", "Statistic", "ExtendedStatistic", "ComparisonOperator", "Threshold", "TreatMissingData", "AlarmActions"} {
				words = append(words, tpl.text(at+"Properties."+key))
			}
			out[name] = strings.Join(words, " ")
		}
	}
	return out
}

func TestAlarms(t *testing.T) {
	const mail = ` {"Fn::If":["HasEmail",[{"Ref":"AlarmTopic"}],{"Ref":"AWS::NoValue"}]}`
	const function, api = `[{"Name":"FunctionName","Value":{"Ref":"Function"}}]`, `[{"Name":"ApiId","Value":{"Ref":"Api"}}]`
	want := map[string]string{
		"FunctionErrors":    `AWS/Lambda Errors ` + function + ` Sum null GreaterThanThreshold 0 notBreaching` + mail,
		"FunctionThrottles": `AWS/Lambda Throttles ` + function + ` Sum null GreaterThanThreshold 0 notBreaching` + mail,
		"ApiErrors":         `AWS/ApiGateway 5xx ` + api + ` Sum null GreaterThanThreshold 0 notBreaching` + mail,
		"FunctionSlow":      `AWS/Lambda Duration ` + function + ` null p99 GreaterThanThreshold {"Ref":"SlowMilliseconds"} notBreaching` + mail,
		"NobodyAsks":        `AWS/ApiGateway Count ` + api + ` Sum null LessThanThreshold 1 breaching` + mail,
	}
	tpl := load(t, "template.yaml")
	got := alarms(tpl)
	for name, what := range want {
		if got[name] != what {
			t.Errorf("%s:\n got %s\nwant %s", name, got[name], what)
		}
		for _, key := range []string{"Namespace", "MetricName", "Dimensions", "ComparisonOperator", "Threshold", "TreatMissingData", "AlarmActions"} {
			broken := tpl.clone(t)
			if err := broken.apply(change{"Resources." + name + ".Properties." + key, nil}); err != nil {
				t.Error(err)
			} else if alarms(broken)[name] == what {
				t.Errorf("%s without %s: nobody noticed", name, key)
			}
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d alarms, want %d", len(got), len(want))
	}
	// Periods of five minutes, so many that QuietMinutes are over.
	for minutes, m := range tpl.at("Mappings.FiveMinutes").(map[string]any) {
		if n := m.(map[string]any)["Periods"]; minutes != "0" && fmt.Sprint(n.(int)*5) != minutes {
			t.Errorf("%s minutes are %v periods", minutes, n)
		}
	}
}

// The secret of the signing user goes into the secret, and nowhere else.
func TestSecretStaysSecret(t *testing.T) {
	const where = "Resources.SigningSecret.Properties.SecretString"
	tpl := load(t, "template.yaml").clone(t)
	if text := tpl.text(where); !strings.Contains(text, "${SigningKey.SecretAccessKey}") {
		t.Errorf("%s is %s, want the key in it", where, text)
	}
	if err := tpl.apply(change{where, nil}); err != nil {
		t.Fatal(err)
	}
	if text := line(tpl); strings.Contains(text, "SecretAccessKey") {
		t.Error("SecretAccessKey is used elsewhere, too")
	}
}

// What a log of the API must not have: tokens come in headers, and some people
// send them in queries.
func TestAccessLogHasNoSecrets(t *testing.T) {
	format := load(t, "template.yaml").text(stage + "AccessLogSettings.Format")
	known := []string{"requestTime", "requestId", "identity.sourceIp", "routeKey", "path", "status", "responseLength", "responseLatency", "integrationErrorMessage"}
	for _, m := range regexp.MustCompile(`\$context\.([A-Za-z.]+)`).FindAllStringSubmatch(format, -1) {
		if !slices.Contains(known, m[1]) {
			t.Errorf("the log has $context.%s", m[1])
		}
	}
	if strings.Contains(format, "$request") || strings.Contains(format, "querystring") {
		t.Errorf("the log has headers or queries: %s", format)
	}
}
