# Hears a battery with python3-can over an SLCAN adapter: one line of state of
# charge, volts and amperes from frames 355 and 356 (Pylontech), little-endian.
# Usage: slcan.py PATH
import struct
import sys
import time

import can

bus = can.Bus(interface="slcan", channel=sys.argv[1], bitrate=500000, ttyBaudrate=115200)
seen, end = {}, time.monotonic() + 60
while not {0x355, 0x356} <= seen.keys() and time.monotonic() < end:
    m = bus.recv(1)
    if m is not None and not m.is_extended_id:
        seen[m.arbitration_id] = bytes(m.data)
soc = struct.unpack_from("<H", seen[0x355])[0]
volts, amps, degrees = struct.unpack_from("<hhh", seen[0x356])
print("soc %d" % soc)
print("volts %.2f" % (volts / 100))
print("amps %.1f" % (amps / 10))
print("degrees %.1f" % (degrees / 10))
bus.shutdown()
