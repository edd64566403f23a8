# Reads a battery with pymodbus and nothing of ours: walks the SunSpec map and
# prints points of 802, 803 and 804, one "model point value" each line.
# Usage: sunspec.py tcp HOST PORT | sunspec.py rtu PATH
import struct
import sys

from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.exceptions import ModbusException

if sys.argv[1] == "tcp":
    client = ModbusTcpClient(sys.argv[2], port=int(sys.argv[3]), timeout=10)
else:
    client = ModbusSerialClient(sys.argv[2], baudrate=9600, parity="N", timeout=10)
if not client.connect():
    sys.exit("no connection")


def read(address, count):
    registers = []
    while count > 0:
        n = min(count, 125)
        answer = client.read_holding_registers(address, n, slave=1)
        if isinstance(answer, ModbusException) or answer.isError():
            sys.exit("read %d at %d: %s" % (n, address, answer))
        registers += answer.registers
        address += n
        count -= n
    return registers


def signed(v):
    return struct.unpack(">h", struct.pack(">H", v))[0]


if struct.pack(">HH", *read(40000, 2)) != b"SunS":
    sys.exit("no marker")
address, models = 40002, {}
while True:
    model = read(address, 1)[0]
    if model == 0xFFFF:
        break
    length = read(address + 1, 1)[0]
    models[model] = read(address, length + 2)
    address += length + 2

b = models[802]
print("802 SoC", round(b[11] * 10.0 ** signed(b[56]), 3))
print("802 A", round(signed(b[44]) * 10.0 ** signed(b[61]), 3))
print("802 CellVMax", round(b[37] * 10.0 ** signed(b[60]), 3))
print("802 CellVMin", round(b[40] * 10.0 ** signed(b[60]), 3))
print("802 State", b[22])
print("802 AHRtg", b[2])
b = models[803]
print("803 ModTmpMax", round(signed(b[4]) * 10.0 ** signed(b[23]), 3))
print("803 ModTmpMin", round(signed(b[7]) * 10.0 ** signed(b[23]), 3))
print("803 StrSt", b[28 + 1] << 16 | b[28 + 2])
print("804 registers", len(models[804]))
print("804 modules", models[804][3])
print("models", *models)

# Set-points by the other's client too: 704 WSet is at 24, two registers.
at = 40002 + len(models[1]) + len(models[701]) + 24
answer = client.write_registers(at, [0xFFFF, 0xB1E0], slave=1)
print("704 write", "error" if answer.isError() else "ok", struct.unpack(">i", struct.pack(">HH", *read(at, 2)))[0])
answer = client.write_registers(40002, [1], slave=1)
print("001 write", answer.exception_code if answer.isError() else "ok")
