# An ISO-TP node of scapy (python3-scapy 2.5.0, python3-can 4.1.0) on the serial port that
# is given: receives as many PDUs as the lengths that are given, sends each one back the
# other way round, and prints the lengths.
import os
import sys

os.environ["HOME"] = "/nonexistent"  # nobody's settings

from scapy.config import conf

conf.contribs["CANSocket"] = {"use-python-can": True}
conf.contribs["ISOTP"] = {"use-can-isotp-kernel-module": False}

from scapy.main import load_contrib

load_contrib("cansocket", globals_dict={})
load_contrib("isotp", globals_dict={})

from scapy.contrib.cansocket_python_can import PythonCANSocket
from scapy.contrib.isotp import ISOTP, ISOTPSoftSocket

bus = PythonCANSocket(bustype="slcan", channel=sys.argv[1], bitrate=500000, sleep_after_open=0)
node = ISOTPSoftSocket(bus, tx_id=0x7E8, rx_id=0x7E0, bs=int(sys.argv[2]), stmin=int(sys.argv[3]), padding=True)
node.impl.fc_timeout = node.impl.cf_timeout = 60  # the machine may be slow
lengths = list(map(int, sys.argv[4:]))
while lengths:
    got = node.sniff(count=1, timeout=60)
    if not got:
        sys.stderr.write("nothing came for 60 s, want %d bytes\n" % lengths[0])
        os._exit(1)
    data = bytes(got[0].data)
    if data == b"?":  # is anybody there yet?
        node.send(ISOTP(b"!"))
        continue
    lengths.pop(0)
    print(len(data), flush=True)
    node.send(ISOTP(data[::-1]))
# The last PDU is sent by another thread. The test hangs up when it is there.
sys.stdin.read()
os._exit(0)  # threads of scapy stay otherwise
