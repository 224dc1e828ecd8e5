/*
 * A file descriptor that a listener keeps for the moment when the process has
 * none left: it is given up to take a newcomer and close it, since one that is
 * left waiting would keep the socket readable and the loop spinning.
 */
#ifndef VNXI_SIDE_CHANNEL_RESERVE_H
#define VNXI_SIDE_CHANNEL_RESERVE_H

#include "side_channel/stats.h"

/* A reserve; -1: there is none to be had. */
int vnxi_reserve_open(void);

/* Give the reserve up for one client of the listening socket `fd`, which is
 * counted and closed. */
void vnxi_reserve_refuse(int reserve, int fd, vnxi_side_stats_t *stats);

#endif
