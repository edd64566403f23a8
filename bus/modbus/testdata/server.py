"""Serves as unit 7, with pymodbus 3.0.

server.py tcp | server.py rtu DEVICE

Says "ready", and on TCP the port, when it does. Holding registers 0 to 999 hold their
addresses, coils and discrete inputs every third is on, input registers are 1000 less
their addresses.
"""

import asyncio
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.framer.rtu_framer import ModbusRtuFramer
from pymodbus.server import StartAsyncSerialServer, StartAsyncTcpServer


async def main():
    bits = [i % 3 == 0 for i in range(2000)]
    unit = ModbusSlaveContext(
        co=ModbusSequentialDataBlock(0, list(bits)),
        di=ModbusSequentialDataBlock(0, list(bits)),
        hr=ModbusSequentialDataBlock(0, list(range(1000))),
        ir=ModbusSequentialDataBlock(0, [1000 - i for i in range(1000)]),
        zero_mode=True,
    )
    context = ModbusServerContext(slaves={7: unit}, single=False)
    if sys.argv[1] == "tcp":
        server = await StartAsyncTcpServer(context=context, address=("127.0.0.1", 0), defer_start=True)
        task = asyncio.ensure_future(server.serve_forever())
        while getattr(server, "server", None) is None:
            await asyncio.sleep(0.01)
        print("ready", server.server.sockets[0].getsockname()[1], flush=True)
        await task
    else:
        server = await StartAsyncSerialServer(
            context=context, framer=ModbusRtuFramer, port=sys.argv[2], baudrate=115200, parity="N", defer_start=True
        )
        await server.start()
        print("ready", flush=True)
        await server.serve_forever()


asyncio.run(main())
