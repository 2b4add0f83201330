# SPDX-License-Identifier: GPL-3.0-or-later
"""lmtp-proxy: an LMTP delivery proxy (RFC 2033) that routes each recipient to the store that holds it.

The package is flat and built in rings. A module imports only from rings inside its own, or from modules that stand
above it in the same ring; ``tests/unit/test_rings.py`` reads this map and proves it.

Ring 0, pure values and the protocol, no I/O:
    reply              a reply, and every sentence the proxy itself can say
    plain_replies      replies of the form that nearly all have, many at once
    xforward           what an MTA says of a message before MAIL
    envelope           path and ESMTP parameter syntax; Recipient, Envelope
    dot_stuffing       message data on the wire: end of data, the lone-dot rule, size
    reply_queue        replies in the order of their commands
    events             what the protocol tells the session
    fixed_answers      the verbs that always get the same answer
    command_lines      a client's octets as command lines
    protocol           LMTP server side, sans-I/O
    keys               the form in which a mailbox is looked up
    share              one process's part of a limit that is for all
    receipts_batch     what is to be remembered of mailboxes, added up
    message_id         the Message-ID in the beginning of a message
    metrics            what a process counts: integers and histograms
Ring 1, files, tables and the log:
    config_error       that a configuration cannot be used
    yaml_text          a YAML file as text scalars with line numbers
    tables             where the backend of a key is written down
    tables.static      the `users:` section of the configuration
    config_values      what a configuration is: frozen values
    config_keys        the type of each key: text -> value
    config_listeners   where clients of all kinds connect
    flat_users         a `users:` section of plain lines, read without YAML
    config_users       the `users:` section
    config_backends    the `backends:` section, and timeouts
    config_difference  what differs between two configurations
    config             a YAML file -> a Config, all errors at once
    loading            a configuration is loaded by a process of its own
    loader             that process
    users_edit         the text of a configuration with some users changed
    users_excerpt      the same for a file of any size
    log_channel        syslog's socket or standard error, never waited for
    log_batch          log lines in batches
    log                what the log is set up to be, and the escaping of foreign text
    late_import        whether this is a good moment for an import
    stream             a connected socket on gevent's loop, and waiting for it
    receipts_file      the file of receipts, which several processes write
    worker_settings    what a worker is told when it is started
    uncertain          a delivery whose outcome is unknown, as a record
Ring 2, decisions:
    routing            recipient -> Route
    in_flight          deliveries under way; which of them a drain waits for
Ring 3, the backends:
    one_thread         a thread for work that waits, made when there is some
    backend_error      that a conversation with a backend failed
    backend            one LMTP conversation with a backend
    pool               the connections to one backend: how many, which are kept
    place              one transaction's place in a pool
    destination        where the mail of one recipient goes in one generation
    preflight          asks a backend whether it would take mail for some users
    generation         one configuration as it serves: number, config, routing, pools
Ring 4, a transaction:
    failure            what a backend's failure or odd reply means for its recipients
    receipts           remembers what each mailbox got, and what waits for it
    uncertain_log      remembers uncertain deliveries, and appends them to a file
    commit             the commit point of a delivery
    commands           commands to a backend, and the replies that they wait for
    asking             one backend is asked for recipients
    delivery           one backend's share of a transaction
    fan_out            several deliveries at once
    delivery_log       one log line per recipient
    parking            where recipients on `hold` wait
    transaction        the fan-out, and replies in RCPT order
Ring 5, clients:
    dot_clock          when the client can have sent its final dot
    client_watch       notices a client that goes away while a backend is waited for
    session_state      a session as an operator sees it
    session            the loop between client socket, protocol and transaction
    patient_acceptor   waits where there is no file left for a client
    acceptor           accepts clients up to a limit, each in a greenlet of its own
    server             listening sockets, client limit, drain on stop
Ring 6, the process:
    reloads            one reload at a time, for however many ask
    config_manager     the greenlet that reloads on SIGUSR1
    figures            what the processes have counted, as plain values
    control_state      the parts of a process that can be asked about
    samples            the counters of the last minutes
    on_demand          a server until its first client comes
    exposition         the figures in the words of Prometheus
    control_request    one request on the control socket, looked at strictly
    control_application  a WSGI application: a table of resources, answers in JSON
    exposition_thread  what is written for those who watch, in a thread
    shared_answer      one answer for all who ask at the same time
    control_json       the parts of the process as JSON values
    receipts_json      what is known of some mailboxes
    control_server     HTTP on the control socket, proof against bad clients
    control            what the operator can ask one process for
    loop_watch         notices when the event loop is kept from its work
    page_graphics      numbers as text, curves and bars as inline SVG
    page_frame         the status page without its content
    status_page        its content
    metrics_server     what `metrics` serves, to read only
    start_log          what the log says at a start
    service            monkey patching, building and joining the above, signals
    control_channel    how the supervisor reaches the control application of a worker
    worker_service     one worker of several
    worker_process     a worker as its supervisor sees it
    team               all workers: started, restarted, kept to one configuration
    team_figures       the figures of all workers
    merged_json        the answers of several workers as one
    merged_control     what the operator can ask a proxy of several workers
    supervisor         the process that serves no mail, but has workers do so
Ring 7, the command, without gevent:
    passed_socket      a listening socket that was passed to the process
    sockets            listening sockets with their owner and mode
    notify             tells systemd that clients are served
    pid_file           the pid file and its lock
    worker             the command that a supervisor runs as a worker
    cli                argv, start order, exit codes of lmtp-proxy
    config_file        the configuration file, changed as a whole or not at all
    control_client     HTTP over the control socket, from the outside
    ctl_output         what lmtp-proxyctl shows
    ctl_arguments      the arguments that all verbs of lmtp-proxyctl have in common
    ctl_files          the files that lmtp-proxyctl reads
    drain              waits until nothing is in flight for some users
    move               preflight, edit, reload, drain
    requeue            has Postfix try deferred mail again at once
    ctl_receipts       the verbs of receipts
    migrate            many users moved with one command
    migrate.states     the states of one user's migration, and what a crash leaves to do
    migrate.events     what a run tells whoever watches it
    migrate.journal_file  the lock of a journal, and room for a full disk
    migrate.journal    where each user is, and how that came about: an SQLite file
    migrate.plan       a YAML file -> a Plan, all errors at once
    migrate.hooks      runs one command of the site's, and ends it
    migrate.turns      one at a time, and those in a hurry first
    migrate.proxy      what a run asks lmtp-proxy for
    migrate.steps      what is done for one user, written down
    migrate.way_back   the way back before `moved`
    migrate.user_run   takes one user from the old backend to the new one
    migrate.window     the hours in which users may be begun
    migrate.runner     N users at once, and when no more are begun
    migrate.checks     what is looked at before a run begins
    migrate.status     where everyone is
    migrate.report     what became of each user, and for how long he was offline: the journal as values
    migrate.report_words  the words of a report
    migrate.report_text  a report as lines, and as JSON
    migrate.report_style  how the page looks
    migrate.report_svg  the distribution of downtimes as a picture
    migrate.report_html  a report as one page
    migrate.report_command  the report that is asked for on the command line
    migrate.live       a run on a terminal
    ctl_migrate        the verb `migrate`
    ctl                the command lmtp-proxyctl
"""

__version__ = "0.1.0"
