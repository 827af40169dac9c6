// SPDX-License-Identifier: Apache-2.0

/// Rows of words in columns that are as wide as their longest word.
struct TextTable {
    private static let gap = 2

    private let rows: [[String]]

    /// Creates a table of rows that all have the same number of columns.
    init(_ rows: [[String]]) { self.rows = rows }

    /// The rows, without spaces at their ends.
    var lines: [String] {
        let widths = (rows.first ?? []).indices.map { column in
            rows.map { $0[column].count }.max() ?? 0
        }
        return rows.map { row in
            var line = ""
            for (word, width) in zip(row, widths) {
                line += word + String(repeating: " ", count: width - word.count + Self.gap)
            }
            while line.last == " " { line.removeLast() }
            return line
        }
    }
}
