"""Brings a bundle into a device, with pymodbus 3.0, as the register map says.

master.py tcp|rtu blocks|exchange|records HOST:PORT|DEVICE BUNDLE

Blocks are written by function 16, or by 23 together with reading the status, or as
records of files by function 21. The last line is OK, or the assertion that does not hold
says what was got.
"""

import hashlib
import struct
import sys
import time
import zlib

from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.file_message import FileRecord, ReadFileRecordRequest, WriteFileRecordRequest

UNIT, BASE = 1, 0xE000
OPEN, RESUME, CLOSE, INSTALL, ABORT, CONFIRM, ROLLBACK, VERIFY_FILE, PRECHECK = range(1, 10)
IDLE, OPENING, RECEIVING, RECEIVED, VERIFYING, VERIFIED, WAIT_SAFE = range(7)

transport, way, where, name = sys.argv[1:]
if transport == "tcp":
    host, port = where.rsplit(":", 1)
    client = ModbusTcpClient(host, port=int(port), timeout=20)
else:
    client = ModbusSerialClient(where, baudrate=115200, parity="N", timeout=20)
assert client.connect(), "no connection"
bundle = open(name, "rb").read()
number = 0


def done(what, answer):
    assert not answer.isError(), f"{what}: got {answer}"
    return answer


def registers(data):
    data = data + b"\0" * (len(data) % 2)
    return list(struct.unpack(f">{len(data) // 2}H", data))


def parse(r):
    u32 = lambda i: r[i] << 16 | r[i + 1]
    return {"state": r[0], "result": r[1], "seq": r[2], "session": r[3], "blocks": u32(4), "received": u32(6), "missing": u32(8), "window": r[10], "retry": r[11]}


def status():
    return parse(done("status", client.read_holding_registers(BASE + 0x40, 32, UNIT)).registers)


def command(code, session=0, arg=0, arg2=0, opens=False):
    global number
    number += 1
    block = struct.pack(">HHHHHIHH32sIIH", code, number, session, 15, 0, len(bundle) if opens else 0, 1 if opens else 0, 0,
                        hashlib.sha256(bundle).digest() if opens else b"", arg, arg2, 0)
    done(f"command {code}", client.write_registers(BASE + 0x20, registers(block), UNIT))
    s = status()
    assert s["seq"] == number and s["result"] == 0, f"command {code}: got {s}"
    return s


def wait(state):
    for _ in range(2000):
        s = status()
        if s["state"] == state:
            return s
        assert s["state"] < 12, f"got {s}"
        time.sleep(0.01)
    raise AssertionError(f"got {s}, want state {state}")


def block(session, n):
    data = bundle[224 * n:224 * (n + 1)]
    return registers(struct.pack(">HIHI", session, n, len(data), zlib.crc32(data)) + data)


def records():
    at = 0
    while at < len(bundle):
        data = bundle[at:at + 200]
        record = FileRecord(file_number=at // 20000 + 1, record_number=at % 20000 // 2, record_data=data + b"\0" * (len(data) % 2))
        answer = client.execute(WriteFileRecordRequest([record], unit=UNIT))
        if answer.isError() and answer.exception_code == 6:
            time.sleep(status()["retry"] / 1000)
            continue
        done(f"records at {at}", answer)
        at += len(data)
    for n in range(0, len(bundle), 20000):
        command(VERIFY_FILE, session, n // 20000 + 1, zlib.crc32(bundle[n:n + 20000]))
    read = b""
    for at in range(0, len(bundle), 200):
        size = min(200, len(bundle) + len(bundle) % 2 - at)
        request = ReadFileRecordRequest([FileRecord(file_number=at // 20000 + 1, record_number=at % 20000 // 2, record_length=size // 2)], unit=UNIT)
        read += done(f"read back {at}", client.execute(request)).records[0].record_data
    assert read[:len(bundle)] == bundle, "other bytes are read back"


identity = done("identity", client.read_holding_registers(BASE, 10, UNIT)).registers
assert identity[:3] == [0x4245, 0x4D46, 0x0100] and identity[4] == 224, f"identity: got {identity}"
session = command(OPEN, opens=True)["session"]
assert session != 0, "no session"
if way == "records":
    records()
s = status()
while s["missing"] < s["blocks"]:
    n = s["missing"]
    if way == "exchange":
        answer = client.readwrite_registers(read_address=BASE + 0x40, read_count=32, write_address=BASE + 0x100, write_registers=block(session, n), unit=UNIT)
        s = parse(done(f"block {n}", answer).registers)
        continue
    for i in range(n, min(n + s["window"], s["blocks"])):
        done(f"block {i}", client.write_registers(BASE + 0x100, block(session, i), UNIT))
    s = status()
wait(RECEIVED)
command(CLOSE, session)
wait(VERIFIED)
wrong = client.write_registers(BASE + 0x100, block(session ^ 1, 0), UNIT)
assert wrong.isError() and wrong.exception_code == 3, f"a wrong session: got {wrong}"
command(INSTALL, session)
wait(WAIT_SAFE)
print("OK")
