// The elements of the rows whose statistics are under way: written as they come, read again in the same order.
//
// Everything around it stands still with `enable`, so that a beat is read a fixed number of enabled cycles after the
// last beat of its row was written; DEPTH must exceed that number and the beats of a row. A read takes one cycle.
module quasar_elements #(
    parameter int W = 64,
    parameter int DEPTH = 32           // a power of two
) (
    input  logic         clk,
    input  logic         enable,
    input  logic         start,
    input  logic         write,
    input  logic [W-1:0] write_data,
    input  logic         read,
    output logic [W-1:0] read_data
);
    localparam int ADDRESS_W = $clog2(DEPTH);
    logic [ADDRESS_W-1:0] write_address, read_address;

    always_ff @(posedge clk) begin
        if (start) begin
            write_address <= '0;
            read_address <= '0;
        end else if (enable) begin
            if (write) write_address <= write_address + 1'b1;
            if (read) read_address <= read_address + 1'b1;
        end
    end

    quasar_memory #(.WIDTH(W), .DEPTH(DEPTH)) memory (
        .clk, .write(enable && write), .write_address, .write_data, .read(enable && read), .read_address, .read_data
    );
endmodule
