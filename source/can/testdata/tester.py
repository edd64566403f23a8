# A tester made of scapy (python3-scapy 2.5.0, python3-can 4.1.0): its ISO-TP and its UDS.
# It brings a bundle to the device at the other end of an SLCAN adapter, with nothing but
# services of the standard. The key is shown with openssl.
#
#   tester.py PORT BUNDLE KEY.pem [STOP]
#
# STOP: go when the device has so many bytes, without a word. It begins where the device says.
# Exit code 3: no answer came, as on a computer that is busy for longer than ISO-TP waits.
import os
import subprocess
import sys
import tempfile

os.environ["HOME"] = "/nonexistent"  # nobody's settings

from scapy.config import conf

conf.contribs["CANSocket"] = {"use-python-can": True}
conf.contribs["ISOTP"] = {"use-can-isotp-kernel-module": False}

from scapy.main import load_contrib

load_contrib("cansocket", globals_dict={})
load_contrib("isotp", globals_dict={})

from scapy.contrib.automotive.uds import (
    UDS,
    UDS_DSC,
    UDS_RC,
    UDS_RD,
    UDS_RDBI,
    UDS_RTE,
    UDS_SA,
    UDS_TD,
)
from scapy.contrib.cansocket_python_can import PythonCANSocket
from scapy.contrib.isotp import ISOTPSoftSocket

port, bundle, key = sys.argv[1:4]
stop = int(sys.argv[4]) if len(sys.argv) > 4 else -1
data = open(bundle, "rb").read()

bus = PythonCANSocket(bustype="slcan", channel=port, bitrate=500000, sleep_after_open=0)
device = ISOTPSoftSocket(bus, tx_id=0x7E0, rx_id=0x7E8, basecls=UDS, padding=True)


def fail(why, code=1):
    print(why, file=sys.stderr, flush=True)
    os._exit(code)


def ask(request, first):
    device.send(UDS() / request)
    while True:
        got = device.sniff(count=1, timeout=20)
        if not got:
            fail("no answer to %r" % request, 3)
        answer = bytes(got[0])
        if answer[:1] == b"\x7f" and answer[2:3] == b"\x78":
            continue
        if answer[0] != first:
            fail("%r: got %s" % (request, answer.hex()))
        return answer


def read(did):
    return ask(UDS_RDBI(identifiers=[did]), 0x62)[3:]


def sign(message):
    with tempfile.NamedTemporaryFile() as f:
        f.write(message)
        f.flush()
        return subprocess.run(
            ["openssl", "pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", f.name],
            check=True, stdout=subprocess.PIPE).stdout


serial = read(0xF18C)
ask(UDS_DSC(diagnosticSessionType=3), 0x50)
ask(UDS_RC(routineControlType=1, routineIdentifier=0x0203), 0x71)
ask(UDS_DSC(diagnosticSessionType=2), 0x50)
seed = ask(UDS_SA(securityAccessType=1), 0x67)[2:]
purpose = b"interlock: unlock programming over CAN, version 1\0"
ask(UDS_SA(securityAccessType=2, securityKey=sign(purpose + len(serial).to_bytes(2, "big") + serial + seed)), 0x67)

progress = read(0xFD03)
total, begin = int.from_bytes(progress[4:8], "big"), int.from_bytes(progress[8:12], "big")
if total != len(data):
    begin = 0
print("from", begin, flush=True)
if begin < len(data):
    answer = ask(UDS_RD(dataFormatIdentifier=0, memorySizeLen=4, memoryAddressLen=4,
                        memoryAddress4=begin, memorySize4=len(data) - begin), 0x74)
    most = int.from_bytes(answer[2:2 + (answer[1] >> 4)], "big") - 2
    counter, at = 1, begin
    while at < len(data):
        if at == stop:
            os._exit(0)  # scapy's threads would go on
        ask(UDS_TD(blockSequenceCounter=counter & 0xFF, transferRequestParameterRecord=data[at:at + most]), 0x76)
        at += most
        counter += 1
    ask(UDS_RTE(), 0x77)
for routine in (0x0202, 0xFF01, 0xF001):
    answer = ask(UDS_RC(routineControlType=1, routineIdentifier=routine), 0x71)
    print("%04X %s" % (routine, answer[4:].hex()), flush=True)
print("state", read(0xFD01).hex(), flush=True)
os._exit(0)
