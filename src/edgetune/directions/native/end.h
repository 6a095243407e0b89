/* The end of one instruction set: what the files that are compiled once for each have defined. */
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
#undef RUN
#undef SPLAT
#undef STREAM
#undef FMA
