/* A box of a JPEG, by the libjpeg-turbo that Pillow brings: it is called through pointers that compiled.py finds in it.

   Declared here is only what is used of jpeglib.h (API 6b, whose layout has not changed since 1998). The library
   itself refuses another layout: jpeg_CreateDecompress compares the version and the size of the structure. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

enum { API = 62, SIZE = 632, JCS_RGB = 2, ROWS = 16 };

typedef struct decompress decompress;

typedef struct {
    void (*error_exit)(decompress *);
    void (*emit_message)(decompress *, int level);
    void *others[3];
    int code, parameters[20], trace_level;
    long num_warnings;
    char rest[128];
} error_manager;

struct decompress {
    error_manager *errors;
    void *memory, *progress, *client;
    int is_decompressor, state;
    void *source;
    unsigned width, height;
    int channels, colours, out_colours;
    char rest[SIZE];
};

typedef struct {
    error_manager *(*std_error)(error_manager *);
    void (*CreateDecompress)(decompress *, int version, size_t size);
    void (*mem_src)(decompress *, const uint8_t *, unsigned long);
    int (*read_header)(decompress *, int);
    int (*start_decompress)(decompress *);
    void (*crop_scanline)(decompress *, unsigned *left, unsigned *width);
    unsigned (*skip_scanlines)(decompress *, unsigned);
    unsigned (*read_scanlines)(decompress *, uint8_t **, unsigned);
    void (*destroy_decompress)(decompress *);
} libjpeg;

typedef struct {
    decompress image;
    error_manager errors;
    jmp_buf failed;
} reader;

static void fail(decompress *image) { longjmp(((reader *)image)->failed, 1); }

static void count(decompress *image, int level) {
    if (level < 0) image->errors->num_warnings++;
}

static int read_box(reader *r, const libjpeg *lib, const uint8_t *data, unsigned long length, unsigned whole_height,
                    unsigned whole_width, unsigned top, unsigned *left, unsigned height, unsigned width, uint8_t *out,
                    ptrdiff_t stride) {
    decompress *image = &r->image;
    if (setjmp(r->failed)) return 1;
    lib->CreateDecompress(image, API, SIZE);
    lib->mem_src(image, data, length);
    lib->read_header(image, 1);
    if (image->height != whole_height || image->width != whole_width) return 1;
    image->out_colours = JCS_RGB;
    lib->start_decompress(image);
    if (width < whole_width) lib->crop_scanline(image, left, &width);
    if (3 * (ptrdiff_t)width > stride || (top && lib->skip_scanlines(image, top) != top)) return 1;
    for (unsigned y = 0; y < height;) {
        uint8_t *rows[ROWS];
        unsigned n = height - y < ROWS ? height - y : ROWS;
        for (unsigned i = 0; i < n; i++) rows[i] = out + (ptrdiff_t)(y + i) * stride;
        n = lib->read_scanlines(image, rows, n);
        if (!n) return 1;
        y += n;
    }
    return r->errors.num_warnings > 0;
}

/* The pixels of a box as RGB to rows that are `stride` bytes apart, from *left on, which moves to the left edge of a
   block. Default settings: the accurate integer transform and smooth upsampling, as Pillow's.
   Returns 0, or 1 where libjpeg has an error or a warning, or wants more room. */
int jpeg_box(const libjpeg *lib, const uint8_t *data, unsigned long length, unsigned whole_height,
             unsigned whole_width, unsigned top, unsigned *left, unsigned height, unsigned width, uint8_t *out,
             int64_t stride) {
    reader r = {{0}};
    r.image.errors = lib->std_error(&r.errors);
    r.errors.error_exit = fail;
    r.errors.emit_message = count;
    const int failed = read_box(&r, lib, data, length, whole_height, whole_width, top, left, height, width, out,
                                (ptrdiff_t)stride);
    lib->destroy_decompress(&r.image);
    return failed;
}
