"""The command line.

main.py has the list of commands and turns errors into exit statuses.  Each
command is a module with

    add_arguments(parser)  which declares its options, and
    run(options, out)      which returns the exit status.

A command writes through the Output that it gets (output.py), so that --json,
colours and plain text need no code in it.  A command's module is imported
when the command is used; nothing else in the package imports this one.
"""
