package main

import (
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/interlock-energy/ota/bundle"
)

type keygenCmd struct {
	Out  string `required:"" placeholder:"DIR" help:"Directory for private.pem and public.pem; made if it does not exist."`
	Kind string `enum:"ed25519,p256,p384,rsa3072" default:"ed25519" help:"Kind of key: ${enum}."`
	JSON bool   `name:"json" help:"Print JSON."`
}

func (*keygenCmd) Help() string {
	return `The private key signs releases. Whoever has it can put firmware onto your devices: keep it off servers and build machines that others can use, and have a copy in a safe place. The public key goes onto every device.

Nothing is overwritten: a key that is replaced by accident cannot be replaced on the devices.

Examples:

    interlock keygen --out keys
    interlock keygen --out keys/second-person --kind p256`
}

func (c *keygenCmd) Run(e *env) error {
	private, public := filepath.Join(c.Out, "private.pem"), filepath.Join(c.Out, "public.pem")
	privatePEM, publicPEM, err := bundle.GenerateKey(c.Kind)
	if err != nil {
		return err
	}
	signer, err := bundle.ParsePrivateKey(privatePEM)
	if err != nil {
		return err
	}
	id, err := bundle.KeyID(signer)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Out, 0o700); err != nil {
		return fmt.Errorf("make a key pair: %w", err)
	}
	// The public half first: should the second file fail, what is left over is no secret.
	if err := writeNew(public, publicPEM, 0o644); err != nil {
		return keepOld(err)
	}
	if err := writeNew(private, privatePEM, 0o600); err != nil {
		os.Remove(public)
		return keepOld(err)
	}
	if c.JSON {
		return e.printJSON(map[string]string{"key_id": id, "kind": c.Kind, "private": private, "public": public})
	}
	fmt.Fprintf(e.stdout, `key id       %s
private key  %s
             signs releases: interlock build --key %[2]s ...
             keep it secret and off the network, with a copy in a safe place
public key   %[3]s
             goes onto every device (keys: files: in its configuration)
             and to whoever wants to check: interlock verify --key %[3]s ...
`, id, private, public)
	return nil
}

func keepOld(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return hint(fmt.Errorf("make a key pair: %w, and keys are never overwritten", err), "give another --out, or move the old key away first")
	}
	return fmt.Errorf("make a key pair: %w", err)
}

// writeNew writes a file that must not exist yet, and leaves none after an error.
func writeNew(name string, data []byte, perm os.FileMode) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(name)
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

type signCmd struct {
	Key  string `required:"" placeholder:"PRIVATE.pem" help:"Private key to sign with."`
	File string `arg:"" help:"Bundle to add the signature to."`
	JSON bool   `name:"json" help:"Print JSON."`
}

func (*signCmd) Help() string {
	return `For fleets whose devices want more than one signature (keys: threshold: in their configuration): the second person looks at the bundle on their own computer, with their own key, and signs it as well. The bundle is checked for damage first, and replaced only when the new one is complete.

Examples:

    interlock inspect bess-1.2.0.bundle
    interlock sign --key second-person/private.pem bess-1.2.0.bundle`
}

func (c *signCmd) Run(e *env) error {
	key, err := loadPrivateKey(c.Key)
	if err != nil {
		return err
	}
	if err := bundle.SignFile(c.File, key); err != nil {
		return err
	}
	id, err := bundle.KeyID(key)
	if err != nil {
		return err
	}
	d, err := openBundle(c.File)
	if err != nil {
		return err
	}
	defer d.close()
	infos, err := bundle.ReadSignatures(d.Signed())
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(map[string]any{"file": c.File, "key_id": id, "signatures": len(infos)})
	}
	fmt.Fprintf(e.stdout, "%s: signed by key %s, %s now\n", clean(c.File), short(id), count(len(infos), "signature"))
	return nil
}

// loadPrivateKey loads a key to sign with, and says what to do if that fails.
func loadPrivateKey(name string) (crypto.Signer, error) {
	key, err := bundle.LoadPrivateKey(name)
	switch {
	case err == nil:
		return key, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, hint(err, "make a key pair with: interlock keygen --out DIR")
	}
	// The likeliest mistake, which is otherwise reported as a wrong file mode.
	if _, publicErr := bundle.LoadKeys(1, name); publicErr == nil {
		return nil, hint(fmt.Errorf("read private key: %s is a public key", name), "give the private key that was made with it")
	}
	return nil, exitWith(exitFailed, err)
}
