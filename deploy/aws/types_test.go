package aws_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/interlock-energy/ota/otatest"
)

// awsCheck returns what the program in check says of a template.
func awsCheck(t *testing.T, tpl template) string {
	t.Helper()
	node := otatest.Tool(t, "node")
	if _, err := os.Stat("check/node_modules/@aws-cdk/aws-service-spec"); err != nil {
		const install = "npm ci --prefix deploy/aws/check"
		if os.Getenv("INTERLOCK_TOOLS") == "1" {
			t.Fatalf("AWS's description of its resources is missing: %s", install)
		}
		t.Skipf("NOT TESTED: AWS's description of its resources is missing: %s", install)
	}
	in, err := json.Marshal(tpl)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), node, "check/check.js")
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && (!errors.As(err, &exit) || stderr.Len() > 0) {
		t.Fatalf("node: %v\n%s", err, stderr.Bytes())
	}
	return out.String()
}

func TestTypesAndProperties(t *testing.T) {
	for _, file := range []string{"template.yaml", "iot.yaml"} {
		tpl := load(t, file)
		if file == "template.yaml" {
			// What "aws cloudformation package" makes of the path of the zip.
			if err := tpl.apply(change{fn + "Code", map[string]any{"S3Bucket": "x", "S3Key": "y"}}); err != nil {
				t.Fatal(err)
			}
		}
		if got := awsCheck(t, tpl); got != "" {
			t.Errorf("%s:\n%s", file, got)
		}
	}
}

func TestTypesAndPropertiesNotice(t *testing.T) {
	// All at once: the description of all of AWS takes a second to load.
	tpl := load(t, "template.yaml").clone(t)
	want := map[string]change{
		"Bucket: there is no property Encryption":                                                                             {bucket + "Encryption", true},
		"Bucket.PublicAccessBlockConfiguration: there is no property BlockPublicAcl":                                          {bucket + "PublicAccessBlockConfiguration.BlockPublicAcl", true},
		"Bucket.LifecycleConfiguration.Rules[1].AbortIncompleteMultipartUpload: the property DaysAfterInitiation is required": {bucket + "LifecycleConfiguration.Rules.1.AbortIncompleteMultipartUpload", map[string]any{}},
		"Bucket.VersioningConfiguration.Status: got true, want string":                                                        {bucket + "VersioningConfiguration.Status", true},
		"Bucket.DeletionPolicy: got Keep":                                                                                     {"Resources.Bucket.DeletionPolicy", "Keep"},
		"Function: there is no property MemoryMegabytes":                                                                      {fn + "MemoryMegabytes", 128},
		"Function.Timeout: got \"ten\", want integer":                                                                         {fn + "Timeout", "ten"},
		"Function.Architectures: got \"arm64\", want array":                                                                   {fn + "Architectures", "arm64"},
		"Function.Code: got \"../../bin/interlock-lambda.zip\", want ref":                                                     {fn + "Code", "../../bin/interlock-lambda.zip"},
		"Function.Environment.Variables.X: got [], want string":                                                               {fn + "Environment.Variables.X", []any{}},
		"FunctionRole: the property AssumeRolePolicyDocument is required":                                                     {"Resources.FunctionRole.Properties.AssumeRolePolicyDocument", nil},
		"ApiStage.DefaultRouteSettings: there is no property RateLimit":                                                       {stage + "DefaultRouteSettings.RateLimit", 5},
		"FunctionSlow: there is no property Treat":                                                                            {"Resources.FunctionSlow.Properties.Treat", "x"},
		"Wrong: there is no resource type AWS::S3::Buckte":                                                                    {"Resources.Wrong", map[string]any{"Type": "AWS::S3::Buckte"}},
		"Api: there is no attribute Retain":                                                                                   {"Resources.Api.Retain", true},
		"Bucket: Api (AWS::ApiGatewayV2::Api) has no attribute Endpoint":                                                      {"Outputs.Bucket.Value", map[string]any{"Fn::Sub": "${Api.Endpoint}"}},
		"ApiUrl: Function (AWS::Lambda::Function) has no attribute Name":                                                      {"Outputs.ApiUrl.Value", map[string]any{"Fn::GetAtt": []any{"Function", "Name"}}},
		"FunctionErrors.AlarmActions: got \"nobody\", want array":                                                             {"Resources.FunctionErrors.Properties.AlarmActions", map[string]any{"Fn::If": []any{"HasEmail", "nobody", map[string]any{"Ref": "AWS::NoValue"}}}},
	}
	for _, c := range want {
		if err := tpl.apply(c); err != nil {
			t.Error(err)
		}
	}
	got := awsCheck(t, tpl)
	for problem, c := range want {
		if !strings.Contains(got, problem) {
			t.Errorf("%v: nobody said %q", c, problem)
		}
	}
	if n := strings.Count(got, "\n"); n != len(want) {
		t.Errorf("%d problems, want %d:\n%s", n, len(want), got)
	}
}

// Plain CloudFormation: what is written is what is made.
func TestNoTransforms(t *testing.T) {
	for _, file := range []string{"template.yaml", "iot.yaml"} {
		tpl := load(t, file)
		if tpl.at("Transform") != nil || strings.Contains(line(tpl.at("Resources")), "AWS::Serverless") || strings.Contains(line(tpl.at("Resources")), "Custom::") {
			t.Errorf("%s has a transform, or a type that AWS does not know", file)
		}
	}
}
