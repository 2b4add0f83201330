# SPDX-License-Identifier: GPL-3.0-or-later
"""From the configuration file to frozen values, and back into the file. No gevent, no sockets.

In the order of their imports:

    yaml_text    a YAML file as text scalars with line numbers
    values       what a configuration is: frozen values
    types        the type of each key: text -> value
    users        the users of a section, or of a file
    users_files  the files beside the configuration in which users stand
    sources      all files of one configuration, and the users in them
    small_file   a file that a key names, read whole
    tls          the keys of a backend that are about TLS
    backends     the `backends:` section, and timeouts
    difference   what differs between two configurations
    read         a YAML file -> a Config, all errors at once
    loading      a configuration is loaded by a process of its own
    loader       that process
    users_edit   the text of a configuration with some users changed, in a file of any size
    file         the configuration file, changed as a whole or not at all
"""
