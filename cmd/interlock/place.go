package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/interlock-energy/ota/api"
	"github.com/interlock-energy/ota/internal/blob"
	"github.com/interlock-energy/ota/internal/blob/s3"
	"github.com/interlock-energy/ota/internal/bucket"
	"github.com/interlock-energy/ota/internal/operator"
)

// serverFlags say which server is meant, and who asks.
type serverFlags struct {
	Server string `required:"" placeholder:"URL" env:"INTERLOCK_SERVER" help:"The update server."`
	whoFlags
}

// whoFlags say who asks a server.
type whoFlags struct {
	TokenFile string `placeholder:"FILE" env:"INTERLOCK_TOKEN_FILE" help:"File with the operator's token. Without it: $$INTERLOCK_TOKEN."`
	CA        string `name:"ca" placeholder:"FILE" env:"INTERLOCK_CA" help:"CA certificate of the server (ca.pem in its data directory). Default: those of the system."`
}

func (f *serverFlags) client(e *env) (*operator.Client, error) { return f.whoFlags.client(e, f.Server) }

func (f *whoFlags) client(e *env, server string) (*operator.Client, error) {
	cfg := operator.Config{URL: server, Token: e.getenv("INTERLOCK_TOKEN")}
	if f.TokenFile != "" {
		b, err := os.ReadFile(f.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the token: %w", err)
		}
		cfg.Token = strings.TrimSpace(string(b))
	}
	if cfg.Token == "" || strings.ContainsAny(cfg.Token, " \t\r\n") {
		return nil, &fault{err: errors.New("no token is given, or what is given is none"), exit: exitUsage,
			hint: "give --token-file with the operator.token from the server's data directory, or set INTERLOCK_TOKEN"}
	}
	if f.CA != "" {
		b, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("read the CA certificate: %w", err)
		}
		cfg.CA = b
	}
	c, err := operator.New(cfg)
	return c, exitWith(exitUsage, err)
}

// placeFlags say where releases are: at a server, or in a bucket without one.
type placeFlags struct {
	Server string `placeholder:"URL" help:"The update server (or $$INTERLOCK_SERVER)."`
	To     string `placeholder:"PLACE" aliases:"in" help:"Without a server: s3://bucket/prefix or a directory (or $$INTERLOCK_BUCKET). Also: --in."`
	whoFlags
}

// bucketFlags say which bucket, where no server will do.
type bucketFlags struct {
	To string `required:"" placeholder:"PLACE" aliases:"in" env:"INTERLOCK_BUCKET" help:"s3://bucket/prefix or a directory. Also: --in."`
}

// place is where releases are. *[operator.Client] is one.
type place interface {
	Releases(ctx context.Context) ([]api.Release, error)
	Groups(ctx context.Context) ([]api.Group, error)
	Change(ctx context.Context, group string, change api.GroupChange) (api.Group, error)
	NewToken(ctx context.Context, req api.TokenRequest) (api.TokenResponse, error)
	Close()
}

// where returns the server or the bucket that is meant; the other is "". What is
// on the command line goes before the environment.
func (f *placeFlags) where(e *env) (server, to string, err error) {
	server, to = f.Server, f.To
	if server != "" && to != "" {
		return "", "", usage("--server and --to exclude each other: releases are at a server, or in a bucket without one")
	}
	if server == "" && to == "" {
		server, to = e.getenv("INTERLOCK_SERVER"), e.getenv("INTERLOCK_BUCKET")
		if server != "" && to != "" {
			return "", "", usage("INTERLOCK_SERVER and INTERLOCK_BUCKET are both set; say with --server or --to which is meant")
		}
	}
	if server == "" && to == "" {
		return "", "", usage("where? give --server URL, or --to s3://bucket/prefix or a directory")
	}
	return server, to, nil
}

// open returns the place. Only a directory that is to be written to is made.
func (f *placeFlags) open(ctx context.Context, e *env, write bool) (place, error) {
	server, to, err := f.where(e)
	if err != nil {
		return nil, err
	}
	if server != "" {
		return f.client(e, server)
	}
	b, _, err := openBucket(ctx, to, write)
	return b, err
}

func (f *bucketFlags) open(ctx context.Context) (bucketPlace, blob.Store, error) {
	return openBucket(ctx, f.To, false)
}

func openBucket(ctx context.Context, to string, write bool) (bucketPlace, blob.Store, error) {
	var s blob.Store
	var err error
	switch {
	case to == "":
		err = usage("where? give --in s3://bucket/prefix or a directory")
	case s3.IsURL(to):
		s, err = s3.Open(ctx, to, s3.Options{})
		err = exitWith(exitUsage, err) // it has not asked anybody yet
	case strings.Contains(to, "://"):
		err = usage("%s: want s3://bucket/prefix or a directory", to)
	default:
		if !write {
			if _, err := os.Stat(to); err != nil { // a misspelt name would look like an empty place
				return bucketPlace{}, nil, fmt.Errorf("look for releases: %w", err)
			}
		}
		s, err = blob.OpenDir(to)
	}
	if err != nil {
		return bucketPlace{}, nil, err
	}
	return bucketPlace{bucket.New(s)}, s, nil
}

// bucketPlace is a bucket, asked like a server.
type bucketPlace struct{ *bucket.Bucket }

// Change implements place.
func (b bucketPlace) Change(ctx context.Context, group string, change api.GroupChange) (api.Group, error) {
	var err error
	switch {
	case change.Promote != "":
		err = b.Promote(ctx, group, change.Promote)
	case change.Withdraw != "":
		err = b.Withdraw(ctx, group, change.Withdraw)
	default:
		err = b.CreateGroup(ctx, group)
	}
	if err != nil {
		return api.Group{}, err
	}
	c, err := b.Current(ctx, group)
	if err != nil {
		return api.Group{}, err
	}
	return c.Describe(), nil
}

// NewToken implements place.
func (b bucketPlace) NewToken(ctx context.Context, req api.TokenRequest) (api.TokenResponse, error) {
	token, err := b.Bucket.NewToken(ctx, req.Device, req.Note)
	return api.TokenResponse{Token: token, Device: req.Device}, err
}

// Close implements place.
func (bucketPlace) Close() {}
