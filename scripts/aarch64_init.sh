#!/bin/bash
# The first process of the emulated machine: aarch64_checks.sh.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
# How much slower the emulated machine is, beside other work; the tests multiply
# their time limits by it.
export VLLM_NIXL_TEST_SLOWDOWN=10
mkdir -p /proc /sys /dev /tmp /run
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs shm /dev/shm
ln -s /proc/self/fd /dev/fd
ip link set lo up
exec </dev/null >/dev/ttyAMA0 2>&1
bash -e /command 2>&1 | cat # no terminal: programs draw no progress bars
echo "the command ended with status ${PIPESTATUS[0]}"
echo o >/proc/sysrq-trigger
sleep 60
