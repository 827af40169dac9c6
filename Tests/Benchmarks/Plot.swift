// SPDX-License-Identifier: Apache-2.0

/// A bar chart of some columns of a section: a group of bars for each row.
struct Plot: Codable {
    let file: String
    let title: String
    let columns: [String]

    private static let colors = ["#4269d0", "#b8bcc8", "#efb118", "#3ca951"]
    private static let barHeight = 14
    private static let nameWidth = 190
    private static let barWidth = 520

    func svg(of section: Report.Section) -> String {
        let groupHeight = columns.count * Self.barHeight + 10
        let height = 60 + section.rows.count * groupHeight
        let width = Self.nameWidth + Self.barWidth + 90
        let values = section.rows.flatMap { row in columns.compactMap { row.values[$0] } }
        let largest = max(values.max() ?? 1, 1e-9)
        var lines = [
            #"<svg xmlns="http://www.w3.org/2000/svg" width="\#(width)" height="\#(height)" "#
                + #"font-family="sans-serif" font-size="12">"#,
            #"<rect width="100%" height="100%" fill="white"/>"#,
            #"<text x="8" y="20" font-size="14" font-weight="bold">\#(Self.escape(title))</text>"#,
        ]
        for (index, column) in columns.enumerated() {
            let x = Self.nameWidth + index * 150
            lines.append(
                #"<rect x="\#(x)" y="30" width="10" height="10" fill="\#(Self.color(index))"/>"#
                    + #"<text x="\#(x + 14)" y="39">\#(Self.escape(column))</text>"#)
        }
        for (number, row) in section.rows.enumerated() {
            let top = 52 + number * groupHeight
            lines.append(
                #"<text x="\#(Self.nameWidth - 8)" y="\#(top + groupHeight / 2)" "#
                    + #"text-anchor="end">\#(Self.escape(row.name))</text>"#)
            for (index, column) in columns.enumerated() {
                guard let value = row.values[column] else { continue }
                let length = max(1, Int(value / largest * Double(Self.barWidth)))
                let y = top + index * Self.barHeight
                lines.append(
                    #"<rect x="\#(Self.nameWidth)" y="\#(y)" width="\#(length)" "#
                        + #"height="\#(Self.barHeight - 2)" fill="\#(Self.color(index))"/>"#
                        + #"<text x="\#(Self.nameWidth + length + 4)" y="\#(y + 10)" "#
                        + #"font-size="10">\#(value.short)</text>"#)
            }
        }
        return lines.joined(separator: "\n") + "\n</svg>\n"
    }

    private static func color(_ index: Int) -> String { colors[index % colors.count] }

    private static func escape(_ text: String) -> String {
        var result = ""
        for character in text {
            switch character {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            default: result.append(character)
            }
        }
        return result
    }
}
