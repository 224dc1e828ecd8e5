/*
 * Lines of the library's log for Python's logging.
 *
 * A thread that logs may hold locks of the library, and a thread that has the
 * GIL may wait for these locks.  So it must not wait for the GIL: it puts the
 * line into a queue.  The thread "vnx-log", started with the first line, takes
 * the GIL and passes the lines to vllm_nixl._log.emit() of the main
 * interpreter.
 *
 * Lines go to stderr directly before a main interpreter has imported the
 * module, after it has begun to end, and if no thread can be started.
 */
#ifndef VNXI_PYTHON_LOG_H
#define VNXI_PYTHON_LOG_H

#include "python/module.h"

/* Pass lines to this interpreter from now on, if it is the main one.  Starts
 * no thread. */
void vnxi_py_log_attach(void);

/* The main interpreter is ending: pass on all lines and end the thread.  Holds
 * the GIL; drops it meanwhile. */
void vnxi_py_log_detach(void);

/* Add the functions _log_flush, _log_level and _log_set_level to the module's
 * methods. */
extern PyMethodDef vnxi_py_log_methods[];

#endif
