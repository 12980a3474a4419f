// The 32-bit sums of one row of the array over the k tiles, one for each token, and the finished sums of the row tile.
//
// `partial` is read and written back while k tiles pass; the last k tile goes to `finished`, which the drain reads while
// `partial` takes the next row tile. A token may come back after 2 cycles at the earliest.
module quasar_accumulator #(
    parameter int DEPTH = 256,
    parameter int TOKEN_W = 8
) (
    input  logic               clk,
    input  logic [TOKEN_W-1:0] read_token,   // one cycle ahead of `token`
    input  logic               valid,
    input  logic [TOKEN_W-1:0] token,
    input  logic               first,        // first k tile: nothing to add to
    input  logic               last,         // last k tile: to `finished`
    input  logic [31:0]        sum,
    input  logic               drain_enable,
    input  logic [TOKEN_W-1:0] drain_token,
    output logic [31:0]        drain_sum
);
    logic [31:0] earlier;
    wire  [31:0] after = first ? sum : earlier + sum;

    quasar_memory #(.WIDTH(32), .DEPTH(DEPTH)) partial (
        .clk, .write(valid && !last), .write_address(token), .write_data(after),
        .read(1'b1), .read_address(read_token), .read_data(earlier)
    );
    quasar_memory #(.WIDTH(32), .DEPTH(DEPTH)) finished (
        .clk, .write(valid && last), .write_address(token), .write_data(after),
        .read(drain_enable), .read_address(drain_token), .read_data(drain_sum)
    );
endmodule
