/* The peers of libmodbus for the benchmark of Modbus reads, in modbus.go:
 *
 *   modbus serve                          unit 1 with 125 registers, which hold their addresses
 *   modbus ask PORT REGISTERS SECONDS     reads them, one request after the other
 */
#include <errno.h>
#include <modbus.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int die(const char *what) {
	fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
	return 1;
}

static long long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int serve(void) {
	modbus_t *m = modbus_new_tcp("127.0.0.1", 0);
	modbus_mapping_t *map = modbus_mapping_new(0, 0, 125, 0);
	uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
	struct sockaddr_in a;
	socklen_t size = sizeof a;
	int l, n;
	for (int i = 0; i < 125; i++)
		map->tab_registers[i] = i;
	if ((l = modbus_tcp_listen(m, 1)) < 0 || getsockname(l, (struct sockaddr *)&a, &size) < 0)
		return die("listen");
	printf("ready %d\n", ntohs(a.sin_port));
	fflush(stdout);
	for (;;) {
		if (modbus_tcp_accept(m, &l) < 0)
			return die("accept");
		while ((n = modbus_receive(m, query)) >= 0)
			if (n > 0 && modbus_reply(m, query, n, map) < 0)
				break;
		modbus_close(m);
	}
}

static int ask(int port, int count, double seconds) {
	modbus_t *m = modbus_new_tcp("127.0.0.1", port);
	uint16_t registers[125];
	char c;
	long n = 0;
	modbus_set_slave(m, 1);
	if (modbus_connect(m) < 0)
		return die("connect");
	for (int i = 0; i < 500; i++) {
		memset(registers, 0xff, sizeof registers);
		if (modbus_read_registers(m, 0, count, registers) != count)
			return die("read");
		for (int j = 0; j < count; j++)
			if (registers[j] != j)
				return fprintf(stderr, "register %d: got %d\n", j, registers[j]), 1;
	}
	printf("ready\n");
	fflush(stdout);
	if (read(0, &c, 1) != 1)
		return 1;
	long long begin = now(), end = begin + seconds * 1e9, t;
	do {
		if (modbus_read_registers(m, 0, count, registers) != count)
			return die("read");
		n++;
	} while ((t = now()) < end);
	printf("%ld %lld\n", n, t - begin);
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
	return 0;
}

int main(int argc, char **argv) {
	if (argc == 2 && !strcmp(argv[1], "serve"))
		return serve();
	if (argc == 5 && !strcmp(argv[1], "ask"))
		return ask(atoi(argv[2]), atoi(argv[3]), atof(argv[4]));
	return 2;
}
