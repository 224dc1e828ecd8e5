/*
 * TcpSideChannel: vnx/side_channel.h as a Python type.
 */
#ifndef VNXI_PYTHON_SIDE_CHANNEL_H
#define VNXI_PYTHON_SIDE_CHANNEL_H

#include "python/module.h"

/* Make the type and add it to the module: 0, or -1 with an exception. */
int vnxi_py_side_channel_add(PyObject *module);

#endif
