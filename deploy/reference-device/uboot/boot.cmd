# The boot script of the reference device: stock U-Boot, RAUC's convention of
# BOOT_ORDER, BOOT_A_LEFT and BOOT_B_LEFT, in the redundant environment format of
# U-Boot and libubootenv. Two copies lie raw on the partition "env", 0x4000 bytes
# each at 0 and at 0x10000: crc32 | flags | name=value\0 ... \0, the CRC being of what
# follows the flags. Of two copies that hold, the one with the higher flags counts,
# and 0 comes after 255.
#
# It promises:
#  - the copy that counts is never written over, only the other one, with one command;
#  - what it does not know in the environment stays there;
#  - one broken copy is normal: a power cut during a write leaves that;
#  - with both broken it writes nothing, for they may be worth a look, and boots A,
#    or else B;
#  - nothing in the environment becomes part of U-Boot's own settings.
#
# For U-Boot numbers are hexadecimal, and so are BOOT_x_LEFT. Names without setenv
# are variables of the shell, which importing an environment does not touch.

# Scratch memory. "env export" fills as many bytes as U-Boot's own environment has,
# whatever size it is told: a quarter of a MiB here, and room for one MiB each.
one=43000000         # the two copies, as they are on the disk
two=43100000
check=43200000       # a copy in the format of "env import -c", without the flags
own=43300000         # U-Boot's own settings, while the device's are loaded

# The watchdog first: the kernel is watched from its first instruction on. Both
# stages of an Intel 6300ESB at 00:05.0 get 0x7530 ms, so it resets after a minute.
# Datasheet 300641-004, chapter 13. 80, 86 unlocks a register; 100 reloads.
if setexpr.l bar *4010028010; then
  pci write.w 0.5.0 60 0
  setexpr reload ${bar} + c
  setexpr second ${bar} + 4
  mw.w ${reload} 80; mw.w ${reload} 86; mw.l ${bar} 7530
  mw.w ${reload} 80; mw.w ${reload} 86; mw.l ${second} 7530
  mw.w ${reload} 80; mw.w ${reload} 86; mw.w ${reload} 100
  pci write.b 0.5.0 68 2
fi

# Read both copies, and see which of them hold.
part start virtio 0 env env1
setexpr env2 ${env1} + 80
holds1=n; holds2=n
virtio read ${one} ${env1} 20
cp.b ${one} ${check} 4; setexpr from ${one} + 5; setexpr to ${check} + 4; cp.b ${from} ${to} 3ffb
if env import -c ${check} 3fff interlock_nothing; then holds1=y; fi
virtio read ${two} ${env2} 20
cp.b ${two} ${check} 4; setexpr from ${two} + 5; cp.b ${from} ${to} 3ffb
if env import -c ${check} 3fff interlock_nothing; then holds2=y; fi
setexpr from ${one} + 4; setexpr.b flags1 *${from}
setexpr from ${two} + 4; setexpr.b flags2 *${from}

use=0
if test ${holds1}${holds2} = yn; then use=1; fi
if test ${holds1}${holds2} = ny; then use=2; fi
if test ${holds1}${holds2} = yy; then
  use=1
  if itest ${flags2} -gt ${flags1}; then use=2; fi
  if itest ${flags1} == ff; then if itest ${flags2} == 0; then use=2; fi; fi
  if itest ${flags1} == 0; then if itest ${flags2} == ff; then use=1; fi; fi
fi
if test ${use} = 1; then setenv good ${one}; setenv flags ${flags1}; setenv block ${env2}; fi
if test ${use} = 2; then setenv good ${two}; setenv flags ${flags2}; setenv block ${env1}; fi

slot=
if test ${use} = 0; then
  echo "boot: both copies of the environment are broken; nothing is written"
else
  cp.b ${good} ${check} 4; setexpr from ${good} + 5; cp.b ${from} ${to} 3ffb
  setexpr.b flags ${flags} + 1; setexpr.b flags ${flags} \& ff
  wflags=${flags}; wblock=${block}
  # From here to the import of ${own} the environment is the device's, and only that.
  env export -b ${own}
  env import -d -c ${check} 3fff
  test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "A B"
  test -n "${BOOT_A_LEFT}" || setenv BOOT_A_LEFT 3
  test -n "${BOOT_B_LEFT}" || setenv BOOT_B_LEFT 3
  first=
  for name in "${BOOT_ORDER}"; do
    if test ${name} = A; then
      test -n "${first}" || first=A
      if test -z "${slot}"; then if itest ${BOOT_A_LEFT} -gt 0; then setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1; slot=A; fi; fi
    fi
    if test ${name} = B; then
      test -n "${first}" || first=B
      if test -z "${slot}"; then if itest ${BOOT_B_LEFT} -gt 0; then setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1; slot=B; fi; fi
    fi
  done
  # No attempts left, for example because the power failed again and again: every slot
  # in the order gets its attempts again. Not the first alone: that may be the one that
  # fails, and then the other, which is good, would never have its turn.
  if test -z "${slot}" -a -n "${first}"; then
    for name in "${BOOT_ORDER}"; do
      if test ${name} = A -o ${name} = B; then setenv BOOT_${name}_LEFT 3; fi
    done
  fi
  echo "boot: BOOT_ORDER=${BOOT_ORDER} BOOT_A_LEFT=${BOOT_A_LEFT} BOOT_B_LEFT=${BOOT_B_LEFT}, slot ${slot}"
  env export -c -s 0x3fff ${check}
  env import -b ${own} 0x40000
  cp.b ${check} ${one} 4; setexpr at ${one} + 4; mw.b ${at} ${wflags}; setexpr at ${one} + 5; cp.b ${to} ${at} 3ffb
  virtio write ${one} ${wblock} 20 || echo "boot: the environment cannot be written"
  if test -z "${slot}" -a -n "${first}"; then
    echo "boot: no attempts left"
    reset
  fi
fi

args="console=ttyAMA0 quiet panic=1"
if test "${slot}" = A -o -z "${slot}"; then
  setenv bootargs ${args} interlock.slot=A root=/dev/vda3
  load virtio 0:3 ${kernel_addr_r} /boot/vmlinuz && load virtio 0:3 ${ramdisk_addr_r} /boot/initrd && booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}
fi
if test "${slot}" = B -o -z "${slot}"; then
  setenv bootargs ${args} interlock.slot=B root=/dev/vda4
  load virtio 0:4 ${kernel_addr_r} /boot/vmlinuz && load virtio 0:4 ${ramdisk_addr_r} /boot/initrd && booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}
fi
echo "boot: slot ${slot} does not start"
reset
