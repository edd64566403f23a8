# make demo    the whole thing in a minute, on this machine
# make test    every test; installs what it needs (Debian, as root) or says what is missing
GO ?= go
BIN := bin
FUZZTIME ?= 60s
export CGO_ENABLED ?= 0

.PHONY: all demo test cuts fuzz bench bench-install cross clean
all:
	$(GO) build -trimpath -o $(BIN)/ ./cmd/...

demo: all
	$(BIN)/interlock demo

test:
	./scripts/need gcc libc6-dev curl
	test -z "$$(gofmt -l .)"
	$(GO) vet ./...
	CGO_ENABLED=1 $(GO) test -race -timeout 20m -skip '^TestCuts$$' ./...
	$(GO) test -c -o $(BIN)/cuts.test ./otatest && $(BIN)/cuts.test -test.run '^TestCuts$$'
	$(MAKE) cross

cuts:
	$(GO) test -c -o $(BIN)/cuts.test ./otatest
	$(BIN)/cuts.test -test.run TestCuts -test.timeout 2h -cuts

fuzz:
	FUZZTIME=$(FUZZTIME) ./scripts/fuzz

bench: all
	./scripts/need curl time:/usr/bin/time
	$(GO) run ./internal/bench

# into block devices, beside RAUC and SWUpdate; as root
bench-install:
	./scripts/need curl time:/usr/bin/time cpio openssl rauc swupdate squashfs-tools:mksquashfs dbus-daemon
	$(GO) run ./internal/bench -install $(BENCH)

# what devices run: the agent builds for small Linux machines
cross:
	for a in arm64 "arm GOARM=7" amd64 riscv64; do env GOOS=linux GOARCH=$$a $(GO) build -o /dev/null ./cmd/... || exit 1; done

clean:
	rm -rf $(BIN)
