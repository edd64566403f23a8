// Checks a CloudFormation template against AWS's own description of its resource
// types: that types, properties and attributes exist, nested ones too, that required
// ones are there, and that values have the right type.
//
//   node check.js < template.json     one line for each problem; exit status 1 if any
//
// The template must have the long forms of functions, as JSON has. What a function such
// as Fn::If returns is checked where it can be seen, and taken as right otherwise.
"use strict";
const { loadAwsServiceSpecSync } = require("@aws-cdk/aws-service-spec");

const db = loadAwsServiceSpecSync();
const problems = [];
const template = JSON.parse(require("fs").readFileSync(0, "utf8"));
const resources = template.Resources || {};

const isObject = (v) => v !== null && typeof v === "object" && !Array.isArray(v);

// values returns what a value may become, without what cannot be seen here.
function values(v) {
  if (!isObject(v) || Object.keys(v).length !== 1) return [v];
  const [name] = Object.keys(v);
  if (name === "Fn::If") return values(v[name][1]).concat(values(v[name][2]));
  if (name === "Ref" || name.startsWith("Fn::")) return [];
  return [v];
}

function check(where, type, value) {
  for (const v of values(value)) checkOne(where, type, v);
}

function checkOne(where, type, v) {
  const want = (ok) => ok || problems.push(`${where}: got ${JSON.stringify(v)}, want ${type.type}`);
  switch (type.type) {
    case "string":
    case "date-time":
      return want(typeof v === "string" || typeof v === "number"); // CloudFormation takes numbers as text
    case "integer":
      return want(Number.isInteger(v));
    case "number":
      return want(typeof v === "number");
    case "boolean":
      return want(typeof v === "boolean");
    case "json":
      return want(isObject(v) || typeof v === "string");
    case "null":
      return want(v === null);
    case "array":
      if (want(Array.isArray(v)) !== true) return;
      return v.forEach((e, i) => check(`${where}[${i}]`, type.element, e));
    case "map":
      if (want(isObject(v)) !== true) return;
      return Object.entries(v).forEach(([k, e]) => check(`${where}.${k}`, type.element, e));
    case "ref":
      if (want(isObject(v)) !== true) return;
      return checkProperties(where, db.get("typeDefinition", type.reference).properties, v);
    case "tag":
      if (want(isObject(v)) !== true) return;
      return checkProperties(where, { Key: { type: { type: "string" }, required: true }, Value: { type: { type: "string" }, required: true } }, v);
    case "union": {
      const before = problems.length;
      let fewest = null;
      for (const t of type.types) {
        checkOne(where, t, v);
        const found = problems.splice(before);
        if (fewest === null || found.length < fewest.length) fewest = found;
      }
      return problems.push(...fewest);
    }
  }
  problems.push(`${where}: this program does not know the type ${type.type}`);
}

function checkProperties(where, known, given) {
  for (const [name, v] of Object.entries(given)) {
    if (known[name] === undefined) problems.push(`${where}: there is no property ${name}`);
    else check(`${where}.${name}`, known[name].type, v);
  }
  for (const [name, p] of Object.entries(known)) {
    if (p.required && given[name] === undefined) problems.push(`${where}: the property ${name} is required`);
  }
}

const specOf = (type) => {
  const found = db.lookup("resource", "cloudFormationType", "equals", type);
  return found.length === 1 ? found.only() : undefined;
};

// Functions, wherever they are.
function checkAttributes(where, v) {
  if (Array.isArray(v)) return v.forEach((e) => checkAttributes(where, e));
  if (!isObject(v)) return;
  const names = [];
  if (v["Fn::GetAtt"]) names.push(v["Fn::GetAtt"]);
  if (typeof v["Fn::Sub"] === "string") {
    for (const m of v["Fn::Sub"].matchAll(/\$\{([A-Za-z0-9]+)\.([A-Za-z0-9.]+)\}/g)) names.push([m[1], m[2]]);
  }
  for (const [resource, attribute] of names) {
    const spec = resources[resource] && specOf(resources[resource].Type);
    if (spec && spec.attributes[attribute] === undefined) problems.push(`${where}: ${resource} (${resources[resource].Type}) has no attribute ${attribute}`);
  }
  Object.values(v).forEach((e) => checkAttributes(where, e));
}

// By the template's anatomy (CloudFormation User Guide, "Resource attribute reference").
const attributes = ["Type", "Properties", "Condition", "DeletionPolicy", "UpdateReplacePolicy", "DependsOn", "Metadata", "CreationPolicy", "UpdatePolicy"];
const policies = ["Delete", "Retain", "RetainExceptOnCreate", "Snapshot"];

for (const [name, r] of Object.entries(resources)) {
  for (const key of Object.keys(r)) if (!attributes.includes(key)) problems.push(`${name}: there is no attribute ${key}`);
  for (const key of ["DeletionPolicy", "UpdateReplacePolicy"]) {
    if (r[key] !== undefined && !policies.includes(r[key])) problems.push(`${name}.${key}: got ${r[key]}, want one of ${policies}`);
  }
  const spec = specOf(r.Type);
  if (spec === undefined) problems.push(`${name}: there is no resource type ${r.Type}`);
  else checkProperties(name, spec.properties, r.Properties || {});
}
for (const section of ["Resources", "Outputs"]) {
  for (const [name, v] of Object.entries(template[section] || {})) checkAttributes(name, v);
}
problems.forEach((p) => console.log(p));
process.exitCode = problems.length > 0 ? 1 : 0;
