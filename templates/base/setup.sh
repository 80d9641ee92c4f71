#!/bin/sh
# Runs inside the new root, as root, after the packages are in.
set -eu

useradd --create-home --uid 1000 --shell /bin/bash user
# Servers that run as users of their own (www-data, postgres) read files below it.
chmod 0755 /home/user
passwd --delete user >/dev/null
echo 'user ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/user
chmod 0440 /etc/sudoers.d/user
ln -s /usr/local/bin/systemctl /usr/local/sbin/service
# Users install tools there without sudo.
chmod -R a+rwX /usr/local

# One name for every sandbox, so that sudo and others can resolve their own host.
echo sandbox > /etc/hostname
printf '127.0.0.1\tlocalhost sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n' > /etc/hosts
# Any address will do: the server answers whatever name server is asked.
echo 'nameserver 8.8.8.8' > /etc/resolv.conf

# The whole computer is one environment: there is no system Python to protect here.
printf '[global]\nbreak-system-packages = true\nroot-user-action = ignore\n' > /etc/pip.conf
update-alternatives --install /usr/bin/python python /usr/bin/python3 1 >/dev/null

# Nothing that differs between two builds of the same packages, and nothing that every sandbox would share by mistake.
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/* /tmp/* /run/*
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
: > /etc/machine-id
