# From etc/lmtp-proxy.yml, whose every key is an example, to the first configuration of an installed package.
s/^  #run_as: lmtp-proxy$/  run_as: lmtp-proxy/
s/^  #control:$/  control:/
s/^  #  socket: \(\/run\/lmtp-proxy\/control\)$/    socket: \1/
s/^  #  owner: root$/    #owner: root/
s/^  #  group: adm$/    #group: adm/
s/^  #  permissions: 0660$/    #permissions: 0660/
s/^  #uncertain_log: /  uncertain_log: /
s/^  #trusted: .*$/  trusted: [127.0.0.0\/8, "::1\/128"]/
s/^    #syslog: /    syslog: /
s/^  #receipts: /  receipts: /
