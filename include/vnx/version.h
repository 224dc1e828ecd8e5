/*
 * The version of these headers.  vnx_version() returns that of the library
 * that the program runs with.
 *
 * Until 1.0, a new minor version (0.1, 0.2) may change the API and the ABI; a
 * new patch version changes neither.  From 1.0 on only a new major version
 * does.  The soname names the ABI: libvnx.so.0.1, later libvnx.so.1.  So a
 * program never runs with a library of another ABI.
 *
 * Within one ABI, functions are only added, and structs that begin with `size`
 * may get more fields at their end.  A program that was compiled with earlier
 * headers passes the smaller size, and the library uses the defaults of the
 * fields that it lacks.  A library that is older than the program refuses the
 * larger size with VNX_ERR_INVALID_PARAM.  Structs without `size`, also those
 * that the library fills, and the table of statuses do not change.
 */
#ifndef VNX_VERSION_H
#define VNX_VERSION_H

#define VNX_VERSION_MAJOR 0
#define VNX_VERSION_MINOR 1
#define VNX_VERSION_PATCH 0

/* A number to compare: 1002003 is version 1.2.3.
 *
 *     #if VNX_VERSION >= 2000    (0.2.0) */
#define VNX_VERSION                                           \
    (VNX_VERSION_MAJOR * 1000000 + VNX_VERSION_MINOR * 1000 + \
     VNX_VERSION_PATCH)

/* "0.1.0" */
#define VNX_VERSION_STRING                                        \
    VNX_VERSION_TEXT(VNX_VERSION_MAJOR)                           \
    "." VNX_VERSION_TEXT(VNX_VERSION_MINOR) "." VNX_VERSION_TEXT( \
        VNX_VERSION_PATCH)
#define VNX_VERSION_TEXT(number) VNX_VERSION_QUOTED(number)
#define VNX_VERSION_QUOTED(number) #number

#endif
