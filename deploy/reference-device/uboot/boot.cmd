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
# are variables of the shell, which importing an environment does not touch. One of
# the same name in the environment would go before it, so names that begin with il_
# are this script's, and are dropped from the environment.

# Scratch memory. "env export" fills as many bytes as U-Boot's own environment has,
# whatever size it is told: a quarter of a MiB here, and room for one MiB each.
il_one=43000000         # the two copies, as they are on the disk
il_two=43100000
il_check=43200000       # a copy in the format of "env import -c", without the flags
il_own=43300000         # U-Boot's own settings, while the device's are loaded

# The watchdog first: the kernel is watched from its first instruction on. Each of the
# two stages of an Intel 6300ESB at 00:05.0 gets half of the time, in ms. Datasheet
# 300641-004, chapter 13. 80, 86 unlocks a register; 100 reloads.
if setexpr.l il_bar *4010028010; then
  pci write.w 0.5.0 60 0
  setexpr il_reload ${il_bar} + c
  setexpr il_second ${il_bar} + 4
  mw.w ${il_reload} 80; mw.w ${il_reload} 86; mw.l ${il_bar} @STAGE@
  mw.w ${il_reload} 80; mw.w ${il_reload} 86; mw.l ${il_second} @STAGE@
  mw.w ${il_reload} 80; mw.w ${il_reload} 86; mw.w ${il_reload} 100
  pci write.b 0.5.0 68 2
fi

# Read both copies, and see which of them hold.
part start virtio 0 env il_env1
setexpr il_env2 ${il_env1} + 80
il_holds1=n; il_holds2=n
virtio read ${il_one} ${il_env1} 20
cp.b ${il_one} ${il_check} 4; setexpr il_from ${il_one} + 5; setexpr il_to ${il_check} + 4; cp.b ${il_from} ${il_to} 3ffb
if env import -c ${il_check} 3fff interlock_nothing; then il_holds1=y; fi
virtio read ${il_two} ${il_env2} 20
cp.b ${il_two} ${il_check} 4; setexpr il_from ${il_two} + 5; cp.b ${il_from} ${il_to} 3ffb
if env import -c ${il_check} 3fff interlock_nothing; then il_holds2=y; fi
setexpr il_from ${il_one} + 4; setexpr.b il_flags1 *${il_from}
setexpr il_from ${il_two} + 4; setexpr.b il_flags2 *${il_from}

il_use=0
if test ${il_holds1}${il_holds2} = yn; then il_use=1; fi
if test ${il_holds1}${il_holds2} = ny; then il_use=2; fi
if test ${il_holds1}${il_holds2} = yy; then
  il_use=1
  if itest ${il_flags2} -gt ${il_flags1}; then il_use=2; fi
  if itest ${il_flags1} == ff; then if itest ${il_flags2} == 0; then il_use=2; fi; fi
  if itest ${il_flags1} == 0; then if itest ${il_flags2} == ff; then il_use=1; fi; fi
fi
if test ${il_use} = 1; then setenv il_good ${il_one}; setenv il_flags ${il_flags1}; setenv il_block ${il_env2}; fi
if test ${il_use} = 2; then setenv il_good ${il_two}; setenv il_flags ${il_flags2}; setenv il_block ${il_env1}; fi

il_slot=
if test ${il_use} = 0; then
  echo "boot: both copies of the environment are broken; nothing is written"
else
  cp.b ${il_good} ${il_check} 4; setexpr il_from ${il_good} + 5; cp.b ${il_from} ${il_to} 3ffb
  setexpr.b il_flags ${il_flags} + 1; setexpr.b il_flags ${il_flags} \& ff
  il_wflags=${il_flags}; il_wblock=${il_block}
  # From here to the import of ${il_own} the environment is the device's, and only that.
  env export -b ${il_own}
  env import -d -c ${il_check} 3fff
  setenv il_slot; setenv il_first; setenv il_name; setenv il_check; setenv il_own
  setenv il_wflags; setenv il_wblock; setenv il_one
  test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "A B"
  test -n "${BOOT_A_LEFT}" || setenv BOOT_A_LEFT 3
  test -n "${BOOT_B_LEFT}" || setenv BOOT_B_LEFT 3
  il_first=
  for il_name in "${BOOT_ORDER}"; do
    if test ${il_name} = A; then
      test -n "${il_first}" || il_first=A
      if test -z "${il_slot}"; then if itest ${BOOT_A_LEFT} -gt 0; then setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1; il_slot=A; fi; fi
    fi
    if test ${il_name} = B; then
      test -n "${il_first}" || il_first=B
      if test -z "${il_slot}"; then if itest ${BOOT_B_LEFT} -gt 0; then setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1; il_slot=B; fi; fi
    fi
  done
  # No attempts left, for example because the power failed again and again: every slot
  # in the order gets its attempts again. Not the first alone: that may be the one that
  # fails, and then the other, which is good, would never have its turn.
  if test -z "${il_slot}" -a -n "${il_first}"; then
    for il_name in "${BOOT_ORDER}"; do
      if test ${il_name} = A -o ${il_name} = B; then setenv BOOT_${il_name}_LEFT 3; fi
    done
  fi
  echo "boot: BOOT_ORDER=${BOOT_ORDER} BOOT_A_LEFT=${BOOT_A_LEFT} BOOT_B_LEFT=${BOOT_B_LEFT}, slot ${il_slot}"
  env export -c -s 0x3fff ${il_check}
  env import -b ${il_own} 0x40000
  cp.b ${il_check} ${il_one} 4; setexpr il_at ${il_one} + 4; mw.b ${il_at} ${il_wflags}; setexpr il_at ${il_one} + 5; cp.b ${il_to} ${il_at} 3ffb
  virtio write ${il_one} ${il_wblock} 20 || echo "boot: the environment cannot be written"
  if test -z "${il_slot}" -a -n "${il_first}"; then
    echo "boot: no attempts left"
    reset
  fi
fi

il_args="console=ttyAMA0 quiet panic=1"
if test "${il_slot}" = A -o -z "${il_slot}"; then
  setenv bootargs ${il_args} interlock.slot=A root=/dev/vda3
  load virtio 0:3 ${kernel_addr_r} /boot/vmlinuz && load virtio 0:3 ${ramdisk_addr_r} /boot/initrd && booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}
fi
if test "${il_slot}" = B -o -z "${il_slot}"; then
  setenv bootargs ${il_args} interlock.slot=B root=/dev/vda4
  load virtio 0:4 ${kernel_addr_r} /boot/vmlinuz && load virtio 0:4 ${ramdisk_addr_r} /boot/initrd && booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}
fi
echo "boot: slot ${il_slot} does not start"
reset
