"""The peers of pymodbus 3.0 for the benchmark of Modbus reads, in modbus.go:

modbus.py serve                         unit 1 with 125 registers, which hold their addresses
modbus.py ask PORT REGISTERS SECONDS    reads them, one request after the other
"""

import asyncio
import logging
import sys
import time


async def serve():
    from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
    from pymodbus.server import StartAsyncTcpServer

    logging.disable()  # it takes every client that goes for an error
    unit = ModbusSlaveContext(hr=ModbusSequentialDataBlock(0, list(range(125))), zero_mode=True)
    context = ModbusServerContext(slaves={1: unit}, single=False)
    server = await StartAsyncTcpServer(context=context, address=("127.0.0.1", 0), defer_start=True)
    task = asyncio.ensure_future(server.serve_forever())
    while getattr(server, "server", None) is None:
        await asyncio.sleep(0.01)
    print("ready", server.server.sockets[0].getsockname()[1], flush=True)
    await task


def ask(port, count, seconds):
    from pymodbus.client import ModbusTcpClient

    client = ModbusTcpClient("127.0.0.1", port=port, timeout=20)
    assert client.connect(), "no connection"
    expected = list(range(count))
    for _ in range(500):
        got = client.read_holding_registers(0, count, 1).registers
        assert got == expected, got
    print("ready", flush=True)
    sys.stdin.readline()
    n, begin = 0, time.monotonic_ns()
    end = begin + int(seconds * 1e9)
    while True:
        assert not client.read_holding_registers(0, count, 1).isError()
        n += 1
        now = time.monotonic_ns()
        if now >= end:
            break
    print(n, now - begin, flush=True)
    sys.stdin.read()


if sys.argv[1] == "serve":
    asyncio.run(serve())
else:
    ask(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
