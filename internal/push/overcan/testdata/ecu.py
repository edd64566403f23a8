# A controller made of scapy, at an SLCAN adapter: it takes one download over UDS and says
# what it got. Written for the test of its name; scapy 2.5.0, python-can 4.1.0.
#
#     ecu.py /dev/pts/5
import hashlib
import os
import sys

from scapy.all import conf, load_contrib

conf.contribs["CANSocket"] = {"use-python-can": True}
conf.contribs["ISOTP"] = {"use-can-isotp-kernel-module": False}
load_contrib("cansocket")
load_contrib("isotp")
load_contrib("automotive.uds")
from scapy.contrib.automotive.uds import UDS, UDS_DSCPR
from scapy.contrib.cansocket_python_can import PythonCANSocket
from scapy.contrib.isotp import ISOTPSoftSocket

bus = PythonCANSocket(bustype="slcan", channel=sys.argv[1], bitrate=500000)
peer = ISOTPSoftSocket(bus, tx_id=0x7E8, rx_id=0x7E0, basecls=UDS)
print("up", flush=True)
image, counter, download = b"", 1, None
while True:
    got = peer.sniff(count=1, timeout=60)
    if not got:
        sys.exit("nobody asks any more")
    pdu = bytes(got[0])
    service = pdu[0]
    if service == 0x10:
        peer.send(UDS() / UDS_DSCPR(diagnosticSessionType=pdu[1], sessionParameterRecord=b"\x00\x32\x01\xf4"))
    elif service == 0x34:
        download = pdu[3:7].hex() + " " + str(int.from_bytes(pdu[7:11], "big"))
        image, counter = b"", 1
        peer.send(UDS(b"\x74\x20\x0f\xff"))
    elif service == 0x36 and pdu[1] == counter:
        image += pdu[2:]
        counter = counter + 1 & 0xFF
        peer.send(UDS(bytes([0x76, pdu[1]])))
    elif service == 0x36 and pdu[1] == counter - 1 & 0xFF:
        peer.send(UDS(bytes([0x76, pdu[1]])))
    elif service == 0x37:
        peer.send(UDS(b"\x77"))
    elif service == 0x3E:
        pass
    elif service == 0x11:
        peer.send(UDS(bytes([0x51, pdu[1]])))
        print(download, len(image), hashlib.sha256(image).hexdigest(), flush=True)
        sys.stdin.read()  # until the test has its answer
        os._exit(0)  # threads of scapy would stay
    else:
        peer.send(UDS(bytes([0x7F, service, 0x11])))
