# SPDX-License-Identifier: GPL-3.0-or-later
"""Many users moved with one command. How the proxy serves mail it does not know; it asks over the control socket.

In the order of their imports:

    states          the states of one user's migration, and what a crash leaves to do
    events          what a run tells whoever watches it
    keeper          stands between a run and one command: a program of its own
    hooks           runs one command of the site's, and ends it
    left_behind     what a dead run has left running is ended, or told
    journal_file    the lock of a journal, and room for a full disk
    orders          what is asked of a run that is under way: pause, resume, jobs
    journal         where each user is, and how that came about: an SQLite file
    plan            a YAML file -> a Plan, all errors at once
    turns           one at a time, and those in a hurry first
    proxy           what a run asks lmtp-proxy for
    steps           what is done for one user, written down
    way_back        the way back before `moved`
    user_run        takes one user from the old backend to the new one
    window          the hours in which users may be begun
    runner          N users at once, and when no more are begun
    checks          what is looked at before a run begins
    status          where everyone is
    report          what became of each user, and for how long they were offline: the journal as values
    report_words    the words of a report
    report_text     a report as lines, and as JSON
    report_html     a report as one page
    report_command  the report that is asked for on the command line
    live            a run on a terminal
    telling         a run tells the proxy how far it is, for the status page
    command         the verb `migrate`
"""

DEFAULT_JOURNAL = "/var/lib/lmtp-proxy/migrate.db"
