# A CAN node of python-can (python3-can 4.1.0) on the serial port that is given: sends
# six frames, receives as many as the test sends, and prints them as candump does.
import sys

import can

WANTED = 11

bus = can.Bus(interface="slcan", channel=sys.argv[1], bitrate=500000, sleep_after_open=0)
for identifier, extended, remote, data in (
    (0x355, False, False, [0x58, 0x00, 0x5E, 0x00]),
    (0x7FF, False, False, []),
    (0x12345678, True, False, [1, 2, 3, 4, 5, 6, 7, 8]),
    (0x355, True, False, [0xA5]),
    (0x123, False, True, 8),
    (0x18DAF110, True, True, 3),
):
    if remote:
        message = can.Message(arbitration_id=identifier, is_extended_id=extended, is_remote_frame=True, dlc=data)
    else:
        message = can.Message(arbitration_id=identifier, is_extended_id=extended, data=data)
    bus.send(message)

heard = 0
while heard < WANTED:
    message = bus.recv(30)
    if message is None:
        sys.exit("nothing came for 30 s")
    name = ("%08X#" if message.is_extended_id else "%03X#") % message.arbitration_id
    if message.is_remote_frame:
        name += "R" + (str(message.dlc) if message.dlc else "")
    else:
        name += message.data.hex().upper()
    print(name)
    heard += 1
