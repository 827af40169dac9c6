// SPDX-License-Identifier: Apache-2.0

import Foundation
import VMKit

/// A benchmark with fio in a virtual machine of the test bed, alternately on the sticks of usbvfiod
/// and on those of QEMU's own controller, with copies of one image.
struct GuestBenchmark {
    static let title = "In a guest"
    private static let rounds = 3
    private static let seconds = 1

    private static let patterns: [(name: String, arguments: String)] = [
        ("read 4 KiB, random", "--rw=randread --bs=4k --iodepth=1"),
        ("write 4 KiB, random", "--rw=randwrite --bs=4k --iodepth=1"),
        ("read 64 KiB", "--rw=read --bs=64k --iodepth=4"),
        ("write 64 KiB", "--rw=write --bs=64k --iodepth=4"),
        ("read 1 MiB", "--rw=read --bs=1M --iodepth=4"),
        ("write 1 MiB", "--rw=write --bs=1M --iodepth=4"),
    ]
    private static let disks = ["usbvfiod", "with uas", "usb-storage", "usb-uas"]
    private static let ratios = [
        (name: "by usb-storage", dividend: "usbvfiod", divisor: "usb-storage"),
        (name: "uas by usb-storage", dividend: "with uas", divisor: "usb-storage"),
        (name: "uas by usb-uas", dividend: "with uas", divisor: "usb-uas"),
    ]

    let folder: URL

    /// The reason why no guest can run on this machine, or `nil`.
    static func absence() -> String? {
        guard case .failure(let error) = Bed.current else { return nil }
        return "\(title): \(error)"
    }

    func run() throws -> Report.Section {
        var section = Report.Section(
            title: Self.title,
            notes: [
                "MB/s of fio with direct access, medians of \(Self.rounds) rounds; 'with uas' is "
                    + "a stick with the option uas; usb-storage and usb-uas are QEMU's, on "
                    + "qemu-xhci, in the same guest. Ratios are medians of usbvfiod's rate divided "
                    + "by QEMU's in the same round.",
                Bed.hasKVM
                    ? "Guests run under KVM."
                    : "Guests run on an emulated processor (TCG), which limits the rates.",
            ],
            columns: Self.disks + Self.ratios.map(\.name))
        section.plots = [
            Plot(file: "guest", title: "\(Self.title): MB/s", columns: Self.disks)
        ]
        let images = try Self.disks.map { name in
            let image = folder.appending(path: "\(name).img")
            try Data(count: 64 << 20).write(to: image)
            return image.path
        }
        let program = try RunningProgram(
            devices: [
                "storage:file=\(images[0]),product=bulk-only",
                "storage:file=\(images[1]),product=attached,uas",
            ], folder: folder)
        let script = folder.appending(path: "guest-script")
        try Data(Self.script.utf8).write(to: script)
        progress("guest: fio in a virtual machine, about two minutes")
        let run = try CompletedProgram(
            [
                "scripts/bed/boot", "--script", script.path,
                "-device",
                #"{"driver":"vfio-user-pci","socket":{"path":"\#(program.socket)","type":"unix"}}"#,
                "-device", "qemu-xhci,id=usb",
                "-drive", "if=none,id=plain,format=raw,file=\(images[2])",
                "-device", "usb-storage,bus=usb.0,drive=plain",
                "-drive", "if=none,id=attached,format=raw,file=\(images[3])",
                "-device", "usb-uas,bus=usb.0,id=uas",
                "-device", "scsi-hd,bus=uas.0,drive=attached,product=usb-uas",
            ], within: .seconds(300))
        try program.terminate()
        section.rows = try Self.rows(run)
        return section
    }

    /// Parses the lines `result DISK,PATTERN,KB/s`.
    private static func rows(_ run: CompletedProgram) throws -> [Report.Row] {
        var rates: [String: [String: [Double]]] = [:]
        for line in run.output.split(whereSeparator: \.isNewline) where line.hasPrefix("result ") {
            let fields = line.dropFirst(7).split(separator: ",").map(String.init)
            guard fields.count == 3, let index = Int(fields[1]), let rate = Double(fields[2]),
                patterns.indices.contains(index)
            else { continue }
            rates[patterns[index].name, default: [:]][fields[0], default: []].append(
                rate * 1024 / 1e6)
        }
        guard !rates.isEmpty else {
            throw BenchmarkError(
                "the guest has printed no results: \(run.output.suffix(2000)) "
                    + "\(run.errors.suffix(1000))"
            )
        }
        return patterns.map { pattern in
            let rates = rates[pattern.name] ?? [:]
            var values = rates.mapValues { median($0) }
            for ratio in ratios {
                let dividend = rates[ratio.dividend] ?? []
                let divisor = rates[ratio.divisor] ?? []
                guard !dividend.isEmpty, !divisor.isEmpty else { continue }
                values[ratio.name] = median(zip(dividend, divisor).map { $0 / $1 })
            }
            return Report.Row(name: pattern.name, values: values)
        }
    }

    /// The script that the guest runs. It finds the disks by their product names.
    private static var script: String {
        let jobs = patterns.enumerated().map { #"    measure "$disk" \#($0) \#($1.arguments)"# }
        return """
            find_disk() {
                local model
                for model in /sys/block/sd*/device/model; do
                    [[ -e $model && $(<$model) == $1* ]] && cut -d/ -f4 <<<$model && return
                done
                return 1
            }
            measure() {
                local disk=$1 number=$2 device
                shift 2
                device=$(find_disk "${names[$disk]}")
                fio --name=job --filename=/dev/$device --direct=1 --ioengine=libaio --thread \\
                    --size=64M --time_based --runtime=\(seconds) --minimal "$@" |
                    awk -F';' -v what="$disk,$number" '{ print "result " what "," $7 + $48 }'
            }
            declare -A names=(
                [usbvfiod]=bulk-only ["with uas"]=attached [usb-storage]=QEMU [usb-uas]=usb-uas)
            for name in "${names[@]}"; do
                for try in {1..300}; do find_disk $name >/dev/null && break; sleep 0.1; done
            done
            for round in {1..\(rounds)}; do for disk in \(disks.map { "'\($0)'" }.joined(separator: " ")); do
            \(jobs.joined(separator: "\n"))
            done; done
            """
    }
}
