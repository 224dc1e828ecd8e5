/*
 * libevent loops, each of which belongs to one thread.
 */
#ifndef VNXI_NET_LOOP_H
#define VNXI_NET_LOOP_H

#include <event2/event.h>

/* Create an event base for one thread.  It has no locks, and no environment
 * variable chooses its kernel interface.  NULL: libevent failed to create it.
 */
struct event_base *vnxi_loop_base_new(void);

/* Free the base, after everything that used it.  Runs one more round first: a
 * bufferevent that was freed with a callback pending goes away only then.
 * NULL is allowed. */
void vnxi_loop_base_free(struct event_base *base);

/* event_free(); NULL is allowed. */
void vnxi_loop_event_free(struct event *event);

/* Callback of the event that stops a loop; `base` is the loop's base. */
void vnxi_loop_on_stop(evutil_socket_t fd, short what, void *base);

#endif
