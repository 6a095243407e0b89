/* The end of one instruction set: what lanes.h, product.h and their includer defined. */
#undef STAGE
#undef INSIDE
#undef TRADE
#undef VU
#undef VF
#undef QUARTER
#undef ROTATE
#undef NAME
#undef TARGET
#undef WIDE
#undef ACROSS
#undef SPLAT
#undef FMA
