/*
 * Design note.  Typing errors seldom hit the first letter, so another first
 * letter means another word: "gpu" is not a misspelled "cpu".
 */
#include "base/words.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/error.h"

#define LENGTH_MAX 32 /* longer words are not compared */
#define EDITS_MAX 2u

static int
lower(const char *text, size_t i)
{
    return tolower((unsigned char)text[i]);
}

static unsigned
least(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

/* The optimal string alignment distance, ignoring case: rows of the matrix of
 * distances between the first i letters of `a` and the first k of `b`. */
static unsigned
edits(const char *a, size_t a_len, const char *b, size_t b_len)
{
    unsigned at[LENGTH_MAX + 1][LENGTH_MAX + 1];

    for (size_t i = 0; i <= a_len; i++) {
        at[i][0] = (unsigned)i;
    }
    for (size_t k = 0; k <= b_len; k++) {
        at[0][k] = (unsigned)k;
    }
    for (size_t i = 1; i <= a_len; i++) {
        for (size_t k = 1; k <= b_len; k++) {
            int x = lower(a, i - 1), y = lower(b, k - 1);
            unsigned best = at[i - 1][k - 1] + (x != y);
            best = least(best, least(at[i - 1][k], at[i][k - 1]) + 1);
            if (i > 1 && k > 1 && x == lower(b, k - 2) &&
                lower(a, i - 2) == y) {
                best = least(best, at[i - 2][k - 2] + 1);
            }
            at[i][k] = best;
        }
    }
    return at[a_len][b_len];
}

/* The edits between two words; more than EDITS_MAX if they are not close. */
static unsigned
distance(const char *given, const char *word)
{
    size_t given_len = strnlen(given, LENGTH_MAX + 1);
    size_t word_len = strnlen(word, LENGTH_MAX + 1);

    if (strcasecmp(given, word) == 0) {
        return 0;
    }
    if (given_len > LENGTH_MAX || word_len > LENGTH_MAX ||
        lower(given, 0) != lower(word, 0)) {
        return EDITS_MAX + 1;
    }
    unsigned count = edits(given, given_len, word, word_len);
    return 2 * count <= word_len ? count : EDITS_MAX + 1;
}

const char *
vnxi_word_meant(const char *given, const char *const *words, size_t count)
{
    const char *meant = NULL;
    unsigned least_edits = EDITS_MAX + 1;

    for (size_t i = 0; i < count; i++) {
        unsigned found = distance(given, words[i]);
        if (found < least_edits) {
            least_edits = found;
            meant = words[i];
        }
    }
    return meant;
}

const char *
vnxi_words_text(char *text, size_t size, const char *given,
                const char *const *words, size_t count)
{
    const char *meant = vnxi_word_meant(given, words, count);

    if (meant != NULL) {
        snprintf(text, size, "did you mean '%s'? The", meant);
    } else {
        snprintf(text, size, "the");
    }
    vnxi_text_add(text, size, "%s",
                  count == 1 ? " only choice is " : " choices are ");
    for (size_t i = 0; i < count; i++) {
        vnxi_text_add(text, size, "%s%s", i > 0 ? ", " : "", words[i]);
    }
    return text;
}
