package bundle

// wellKnown returns where the private half of the key with this id is published,
// or "". Such keys are in examples and tests, and have been found in products
// (MCUboot advisory GHSA-gcxh-546h-phg4), so devices and signers refuse them.
func wellKnown(id string) string {
	switch id {
	case "98c65f996d5fff7528c6d7a29acf8337ddb305da346878d13ccbb12f1cfa9654", // ed25519
		"d2ee8a3a0544efc764b1bd8bf7436e089f809951b00cd718c3684346269a1a71", // p256
		"0c2b0d12706acbad6aa94af12ca46d0a8f5140c57c3d3a135b193f692226d2c7", // p384
		"c76b6f749acfac9091fe9b342fe0d91f696548a74493cea268383b95d2a6c965": // rsa3072
		return "Interlock, bundle/testdata"
	case "c1907fa4eac7fae3840a78902b6f0710b037e9968e5c6274a12a28790c7d4e3c", // root-ed25519.pem
		"e30466f6b8470c1f29070b17f1e2d3e94d445e3f608087fdc711e4382bb538b6", // root-ec-p256.pem
		"6bcd1e16d80e5fe13a5307e6f1de8344c7e50e537d9962ce35ef6db5e642fae8", // root-ec-p384.pem
		"159d8b7930769d887f3ff0b4e9ec176b82313663f2ef76dc24f5e964da1bc482": // root-rsa-3072.pem
		return "MCUboot"
	case "f793580060562d6ff075d814ea698c282fcc779b0cde64d79ffc6301df00d14b":
		return "DSSE, protocol.md, test vectors"
	case "06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9", // test 1
		"deb2ded39dc26fce0e6085b6fc34bf6b5941913bbfe2ea614113cff9e004c170", // test 2
		"8d39ba50abe50f77b6bb8ae7b6927aff7ffbeba35ad2837c0e51e82bcbcc60d5", // test 3
		"e4f982b51ad0bdd87be820b259fe80337ef636e72b9fa7a8867a6949eb610fd6", // test 1024
		"e77db4a9572e9f6552c22bc751d5499ad218a73bdf7e15dc6ea0fc69246a44de": // test SHA(abc)
		return "RFC 8032, section 7.1"
	}
	return ""
}
