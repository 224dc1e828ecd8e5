/*
 * Help in messages about a word that is none of those expected.
 */
#ifndef VNXI_BASE_WORDS_H
#define VNXI_BASE_WORDS_H

#include <stddef.h>

/* Return the word that was probably meant; NULL: none.  It differs from the
 * given one only in upper and lower case.  Or else it is the one that takes
 * the fewest edits (insert, delete or replace a letter, or swap two
 * neighbours): at most two, at most half as many as it has letters, and none
 * of its first letter. */
const char *vnxi_word_meant(const char *given, const char *const *words,
                            size_t count);

/* Write "did you mean 'DRAM'? The choices are DRAM, VRAM", cut off at `size`,
 * or only the choices.  Returns `text`. */
const char *vnxi_words_text(char *text, size_t size, const char *given,
                            const char *const *words, size_t count);

/* The same, valid until the end of the enclosing block. */
#define VNXI_WORDS_TEXT 240
#define vnxi_words(given, words, count)                                   \
    vnxi_words_text((char[VNXI_WORDS_TEXT]){0}, VNXI_WORDS_TEXT, (given), \
                    (words), (count))

#endif
