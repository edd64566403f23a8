package aws_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// grants returns every statement of every policy in a template, one line each:
// whose, the effect, for whom, what, on what, and when.
func (tpl template) grants() []string {
	var lines []string
	resources, _ := tpl.at("Resources").(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		lines = append(lines, statements(name, resources[name])...)
	}
	return lines
}

// statements finds policy documents wherever they are.
func statements(where string, v any) (lines []string) {
	switch v := v.(type) {
	case map[string]any:
		list, isPolicy := v["Statement"].([]any)
		for _, s := range list {
			m, _ := s.(map[string]any)
			for _, what := range each(m["Action"]) {
				for _, on := range each(m["Resource"]) {
					lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s: %s %s %s %s%s", where, line(m["Effect"]), who(m["Principal"]), what, on, when(m))))
				}
			}
		}
		if !isPolicy {
			for _, key := range slices.Sorted(maps.Keys(v)) {
				lines = append(lines, statements(where, v[key])...)
			}
		}
	case []any:
		for _, e := range v {
			lines = append(lines, statements(where, e)...)
		}
	}
	return lines
}

func each(v any) []string {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []string
	for _, e := range list {
		if m, ok := e.(map[string]any); ok {
			switch {
			case m["Fn::Sub"] != nil:
				e = m["Fn::Sub"]
			case m["Fn::GetAtt"] != nil:
				e = "@" + strings.Trim(strings.ReplaceAll(line(m["Fn::GetAtt"]), `","`, "."), `[]"`)
			case m["Ref"] != nil:
				e = "@" + line(m["Ref"])
			}
		}
		if e == nil {
			e = "-"
		}
		out = append(out, line(e))
	}
	return out
}

func who(v any) string {
	if v == nil {
		return "itself"
	}
	if m, ok := v.(map[string]any); ok && len(m) == 1 && m["Service"] != nil {
		return line(m["Service"])
	}
	return line(v)
}

// when is what else a statement says: all but what has a place in the line.
func when(m map[string]any) string {
	rest := maps.Clone(m)
	for _, key := range []string{"Sid", "Effect", "Principal", "Action", "Resource"} {
		delete(rest, key)
	}
	if len(rest) == 0 {
		return ""
	}
	return " " + line(rest)
}

const iotARN = "arn:${AWS::Partition}:iot:${AWS::Region}:${AWS::AccountId}:"
const thing = "$aws/things/${!iot:Connection.Thing.ThingName}/"

// This is all that anybody may do by the templates. Whoever changes a policy
// changes this list, too, and can be asked why.
var granted = map[string][]string{
	"template.yaml": {
		`BucketPolicy: Deny * s3:* @Bucket.Arn {"Condition":{"Bool":{"aws:SecureTransport":"false"}}}`,
		`BucketPolicy: Deny * s3:* ${Bucket.Arn}/* {"Condition":{"Bool":{"aws:SecureTransport":"false"}}}`,
		`BucketPolicy: Deny * s3:* @Bucket.Arn {"Condition":{"NumericLessThan":{"s3:TlsVersion":"1.2"}}}`,
		`BucketPolicy: Deny * s3:* ${Bucket.Arn}/* {"Condition":{"NumericLessThan":{"s3:TlsVersion":"1.2"}}}`,
		`FunctionRole: Allow lambda.amazonaws.com sts:AssumeRole -`,
		`FunctionRole: Allow itself s3:GetObject ${Bucket.Arn}/${Prefix}groups/*`,
		`FunctionRole: Allow itself s3:GetObject ${Bucket.Arn}/${Prefix}releases/*`,
		`FunctionRole: Allow itself s3:GetObject ${Bucket.Arn}/${Prefix}images/*`,
		`FunctionRole: Allow itself s3:GetObject ${Bucket.Arn}/${Prefix}bundles/*`,
		`FunctionRole: Allow itself s3:GetObject ${Bucket.Arn}/${Prefix}tokens/*`,
		`FunctionRole: Allow itself s3:ListBucket @Bucket.Arn {"Condition":{"StringLikeIfExists":{"s3:prefix":{"Fn::Sub":"${Prefix}*"}}}}`,
		`FunctionRole: Allow itself s3:PutObject ${Bucket.Arn}/${Prefix}reports/* {"Condition":{"Null":{"s3:if-none-match":"false"}}}`,
		`FunctionRole: Allow itself logs:CreateLogStream @FunctionLogs.Arn`,
		`FunctionRole: Allow itself logs:PutLogEvents @FunctionLogs.Arn`,
		`FunctionRole: Allow itself secretsmanager:GetSecretValue @SigningSecret`,
		`SigningUserName: Allow itself s3:GetObject ${Bucket.Arn}/${Prefix}images/*`,
		`SigningUserName: Allow itself s3:GetObject ${Bucket.Arn}/${Prefix}bundles/*`,
	},
	"iot.yaml": {
		`DevicePolicy: Allow itself iot:Connect ` + iotARN + `client/${!iot:Connection.Thing.ThingName} {"Condition":{"Bool":{"iot:Connection.Thing.IsAttached":"true"}}}`,
		`DevicePolicy: Allow itself iot:Publish ` + iotARN + `topic/` + thing + `jobs/get`,
		`DevicePolicy: Allow itself iot:Publish ` + iotARN + `topic/` + thing + `jobs/start-next`,
		`DevicePolicy: Allow itself iot:Publish ` + iotARN + `topic/` + thing + `jobs/*/get`,
		`DevicePolicy: Allow itself iot:Publish ` + iotARN + `topic/` + thing + `jobs/*/update`,
		`DevicePolicy: Allow itself iot:Publish ` + iotARN + `topic/` + thing + `streams/*/describe/*`,
		`DevicePolicy: Allow itself iot:Publish ` + iotARN + `topic/` + thing + `streams/*/get/*`,
		`DevicePolicy: Allow itself iot:Subscribe ` + iotARN + `topicfilter/` + thing + `jobs/*`,
		`DevicePolicy: Allow itself iot:Subscribe ` + iotARN + `topicfilter/` + thing + `streams/*`,
		`DevicePolicy: Allow itself iot:Receive ` + iotARN + `topic/` + thing + `jobs/*`,
		`DevicePolicy: Allow itself iot:Receive ` + iotARN + `topic/` + thing + `streams/*`,
		`DevicePolicy: Allow itself iot:AssumeRoleWithCertificate @LogRoleAlias.RoleAliasArn`,
		`JobUrlRole: Allow iot.amazonaws.com sts:AssumeRole - {"Condition":{"ArnLike":{"aws:SourceArn":{"Fn::Sub":"` + iotARN + `*"}},"StringEquals":{"aws:SourceAccount":{"Ref":"AWS::AccountId"}}}}`,
		`JobUrlRole: Allow itself s3:GetObject arn:${AWS::Partition}:s3:::${BucketName}/${Prefix}images/*`,
		`JobUrlRole: Allow itself s3:GetObject arn:${AWS::Partition}:s3:::${BucketName}/${Prefix}bundles/*`,
		`LogRole: Allow credentials.iot.amazonaws.com sts:AssumeRole -`,
		`LogRole: Allow itself logs:CreateLogStream arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:${LogGroupName}:log-stream:${!credentials-iot:ThingName}`,
		`LogRole: Allow itself logs:PutLogEvents arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:${LogGroupName}:log-stream:${!credentials-iot:ThingName}`,
		`TopicPolicy: Allow itself iot:Publish ` + iotARN + `topic/interlock/${!iot:Connection.Thing.ThingName}/reports`,
		`TopicPolicy: Allow itself iot:Publish ` + iotARN + `topic/interlock/${!iot:Connection.Thing.ThingName}/status`,
		`TopicPolicy: Allow itself iot:Subscribe ` + iotARN + `topicfilter/interlock/${!iot:Connection.Thing.ThingName}/wake`,
		`TopicPolicy: Allow itself iot:Receive ` + iotARN + `topic/interlock/${!iot:Connection.Thing.ThingName}/wake`,
	},
}

func TestGrants(t *testing.T) {
	for file, want := range granted {
		tpl := load(t, file)
		if diff := cmp.Diff(want, tpl.grants()); diff != "" {
			t.Errorf("%s: policies (-want +got):\n%s", file, diff)
		}
		// What could hide a grant from the list above.
		for name, r := range tpl.at("Resources").(map[string]any) {
			p, _ := r.(map[string]any)["Properties"].(map[string]any)
			for _, key := range []string{"ManagedPolicyArns", "PermissionsBoundary", "Groups"} {
				if p[key] != nil {
					t.Errorf("%s: %s has %s", file, name, key)
				}
			}
		}
	}
}

// A change of any policy is noticed.
func TestGrantsNotice(t *testing.T) {
	read := "Resources.FunctionRole.Properties.Policies.0.PolicyDocument.Statement."
	for file, changes := range map[string][]change{
		"template.yaml": {
			{read + "0.Action", "s3:*"},
			{read + "0.Action", []any{"s3:GetObject", "s3:PutObject"}},
			{read + "0.Resource.0", "*"},
			{read + "0.NotResource", "x"},
			{read + "1.Condition", nil},
			{read + "1.Condition.StringLikeIfExists", map[string]any{"s3:prefix": "*"}},
			{read + "2.Condition", nil},
			{read + "2.Resource", map[string]any{"Fn::Sub": "${Bucket.Arn}/${Prefix}*"}},
			{"Resources.FunctionRole.Properties.AssumeRolePolicyDocument.Statement.0.Principal", "*"},
			{"Resources.FunctionRole.Properties.Policies.1.PolicyDocument.Statement.0.Resource", "*"},
			{"Resources.FunctionRole.Properties.Policies.2.Fn::If.1.PolicyDocument.Statement.0.Resource", "*"},
			{"Resources.SigningUserName.Properties.Policies.0.PolicyDocument.Statement.0.Resource", map[string]any{"Fn::Sub": "${Bucket.Arn}/*"}},
			{"Resources.SigningUserName.Properties.Policies.0.PolicyDocument.Statement.0.Action", "s3:Get*"},
			{"Resources.BucketPolicy.Properties.PolicyDocument.Statement.0.Condition", map[string]any{"Bool": map[string]any{"aws:SecureTransport": "true"}}},
			{"Resources.BucketPolicy.Properties.PolicyDocument.Statement.0.Effect", "Allow"},
			{"Resources.BucketPolicy.Properties.PolicyDocument.Statement.1.Resource", map[string]any{"Fn::GetAtt": []any{"Bucket", "Arn"}}},
			{"Resources.BucketPolicy", nil},
			{"Resources.Another", map[string]any{"Type": "AWS::IAM::Policy", "Properties": map[string]any{"PolicyDocument": map[string]any{"Statement": []any{map[string]any{"Effect": "Allow", "Action": "*", "Resource": "*"}}}}}},
		},
		"iot.yaml": {
			{"Resources.DevicePolicy.Properties.PolicyDocument.Statement.0.Condition", nil},
			{"Resources.DevicePolicy.Properties.PolicyDocument.Statement.0.Resource", "*"},
			{"Resources.DevicePolicy.Properties.PolicyDocument.Statement.1.Resource.3", map[string]any{"Fn::Sub": iotARN + "topic/$aws/things/*/jobs/*/update"}},
			{"Resources.LogRole.Properties.Policies.0.PolicyDocument.Statement.0.Resource", map[string]any{"Fn::Sub": "arn:x:log-group:${LogGroupName}:*"}},
			{"Resources.JobUrlRole.Properties.AssumeRolePolicyDocument.Statement.0.Condition", nil},
			{"Resources.JobUrlRole.Properties.AssumeRolePolicyDocument.Statement.0.Condition.StringEquals", nil},
		},
	} {
		for _, c := range changes {
			tpl := load(t, file).clone(t)
			if err := tpl.apply(c); err != nil {
				t.Errorf("%s: %v", file, err)
			} else if cmp.Equal(granted[file], tpl.grants()) {
				t.Errorf("%s, %v: nobody noticed", file, c)
			}
		}
	}
}
