# make demo    the whole thing in a minute, on this machine
# make aws-demo   the same without a server: S3, Lambda and devices, all on this machine
# make field-demo  the same over Modbus and CAN, on bad lines
# make test    every test; installs what it needs (Debian, as root) or says what is missing
GO ?= go
BIN := bin
PYTHON := /usr/lib/python3/dist-packages
NODE := awstest/testdata/device-sdk deploy/aws/check # what runs in Node: another implementation, and a checker
# what takes one step at a time, at every step, or a process for each, has nothing to race, and five times as long with the detector
STEPS := Scripts|Tampering|Seal|DamagedBundle|SameAsBootloader|Plans|WrittenVerifies|Cuts|(Entry|BootControl|Format|Block|Alone|MarkGood|Spool)Cuts|Tears|EveryTear|TwoPublishers|PowerCutAt.*|KillAt.*|DiskErrorAt.*|ReplacedDuringPowerCut|EveryCut.*|EveryLoss|EveryRestart.*|EachFrame|EachRestart|BadLines?
SOAK ?= 10m
FUZZTIME ?= 60s
export CGO_ENABLED ?= 0

.PHONY: all demo aws-demo field-demo lambda test cuts mutants fuzz soak-modbus vm bench bench-install bench-modbus cross clean
all:
	$(GO) build -trimpath -o $(BIN)/ ./cmd/...

demo: all
	$(BIN)/interlock demo

aws-demo:
	./scripts/versitygw
	$(GO) test -count 1 -v -run '^TestWithoutAServer$$' ./internal/awsdemo

field-demo:
	$(GO) test -count 1 -v -run '^TestOverTheFieldBus$$' ./internal/fielddemo

# the AWS Lambda function, as deploy/aws/template.yaml wants it
lambda:
	./scripts/lambda-zip $(BIN)/interlock-lambda.zip

test: export INTERLOCK_TOOLS = 1
test:
	./scripts/need gcc libc6-dev curl u-boot-tools:mkenvimage libubootenv-tool:fw_printenv grub-common:grub-mkimage \
		mtools:mcopy dosfstools:mkfs.vfat e2fsprogs:mkfs.ext2 mount:losetup qemu-system-x86:qemu-system-x86_64 \
		grub-pc-bin:/usr/lib/grub/i386-pc/boot.img ovmf:/usr/share/OVMF/OVMF_CODE_4M.fd \
		systemd-boot-efi:/usr/lib/systemd/boot/efi/systemd-bootx64.efi \
		mbpoll socat tshark python3-can:can_logger python3-scapy:scapy python3-serial:$(PYTHON)/serial/__init__.py \
		python3-pymodbus:$(PYTHON)/pymodbus/__init__.py python3-serial-asyncio:$(PYTHON)/serial_asyncio/__init__.py \
		mosquitto openssl nodejs:node npm
	./scripts/versitygw
	for d in $(NODE); do npm ci --silent --no-audit --no-fund --prefix $$d || exit 1; done
	test -z "$$(gofmt -l .)"
	$(GO) vet ./...
	CGO_ENABLED=1 GO="$(GO)" ./scripts/race -race -p 3 -timeout 20m -skip '^Test(Matrix|Mutants|$(STEPS))$$' ./...
	$(GO) test -count 1 -timeout 20m -run '^Test($(STEPS))$$' ./cmd/interlock ./plant/... ./slot/... ./store ./internal/bucket ./internal/evidence ./internal/inbox ./source/awsiot ./internal/push/...
	$(GO) test -count 1 -run 'DoesNotAllocate$$' ./bus/modbus # not told by the race detector
	$(GO) test -c -o $(BIN)/cuts.test ./otatest && $(BIN)/cuts.test -test.run '^TestMatrix$$'
	$(GO) test -count 1 -timeout 20m ./internal/mutants
	$(MAKE) cross

cuts:
	$(GO) test -c -o $(BIN)/cuts.test ./otatest
	$(BIN)/cuts.test -test.run '^TestMatrix$$' -test.timeout 2h -cuts

mutants: export INTERLOCK_TOOLS = 1
mutants:
	$(GO) test -count 1 -v -timeout 2h ./internal/mutants -mutants

fuzz:
	FUZZTIME=$(FUZZTIME) ./scripts/fuzz

# a Modbus server that is sent garbage on a live socket
soak-modbus:
	nice $(GO) test ./bus/modbus -count 1 -v -run '^TestSoak$$' -soak $(SOAK) -timeout 2h

# real bootloaders in QEMU; VM=quick for one board and two releases
vm:
	./deploy/reference-device/test

# what an installation costs. bench-install: into block devices, beside RAUC and
# SWUpdate, as root. BENCH="-rounds 7 -size 67108864" is passed on
PEERS := rauc swupdate openssl cpio squashfs-tools:mksquashfs dbus-daemon
bench bench-install: all
	./scripts/need curl time:/usr/bin/time $(if $(findstring install,$@),$(PEERS))
	$(GO) run ./internal/bench $(if $(findstring install,$@),-install) $(BENCH)

# registers per second, beside libmodbus and pymodbus
bench-modbus:
	./scripts/need gcc libc6-dev libmodbus-dev:/usr/include/modbus/modbus.h python3-pymodbus:$(PYTHON)/pymodbus/__init__.py
	$(GO) run ./internal/bench -modbus -rounds 21 $(BENCH)

# what devices run: the agent builds for small Linux machines
cross:
	for a in arm64 "arm GOARM=7" riscv64; do env GOOS=linux GOARCH=$$a $(GO) build -o /dev/null ./cmd/interlockd || exit 1; done
	GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/...
	$(GO) vet -tags noaws ./cmd/interlockd

clean:
	rm -rf $(BIN)
