// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage
internal import USB

/// A USB stick: the device that joins control pipe, transport, logical unit and image.
///
/// Transfers wait in ``StoragePipes``. ``advance()`` takes from there whatever can be used now. If the
/// page cache has the data, the event loop moves them straight between the image and the transfer's
/// buffer; otherwise the worker moves them through the ``StagingBuffer``. The worker has one job at a
/// time, and the bulk pipes wait for its end, so that everything happens in the order of the guest;
/// control requests are answered meanwhile. A cancelled transfer does not wait: it completes at once,
/// and only its successors wait for the job.
final class StorageDevice: USBDevice {
    let speed: USBSpeed
    var summary: String

    var image: any DiskImage
    let worker: Worker
    let logger: Logger
    /// From being plugged in until being unplugged.
    private var port: (any USBPort)?
    var pipes: StoragePipes
    var unit: LogicalUnit

    /// What the data stage moves.
    var command: Command?
    /// The worker moves bytes or works for a command.
    var isBusy = false
    /// The transfer for which the worker is at work; `nil` once it is cancelled.
    var pending: PendingTransfer?
    private(set) lazy var staging = StagingBuffer(capacity: MassStorageLimits.bytesAtOnce)
    /// Ends the job that the worker has, if it is a long one.
    var cancellation: Cancellation?
    /// The operator changes the medium; see ``changeMedium(to:force:then:)``.
    var isChangingMedium = false
    /// A flush that the host does not wait for.
    var isFlushingInBackground = false
    /// Of the present image.
    var lostWrites = LostWrites()
    /// The command of UAS whose status tells of them.
    private var lossTag: UInt16?
    /// The operator learns of the first error; a guest cannot fill the log with more.
    var hasToldOfErrors = false
    /// Counts resets of the transport: what was begun before the last one has no say any more.
    var era: UInt64 = 0
    /// Whether the file system can tell that a read or a write would wait.
    var canTryReading = true
    var canTryWriting = true

    /// A command with a data stage.
    enum Command {
        case reply([UInt8])
        case read(Extent)
        case write(Extent, durably: Bool)
        case compare(Extent)
        case parameters(CommandBlock, [UInt8])
    }

    init(
        image: any DiskImage, unit: LogicalUnit, speed: USBSpeed, offersUAS: Bool, summary: String,
        worker: Worker, logger: Logger
    ) {
        self.image = image
        self.unit = unit
        self.speed = speed
        self.summary = summary
        self.worker = worker
        self.logger = logger
        pipes = StoragePipes(
            control: DefaultControlPipe(
                StorageDescriptors.description(
                    speed: speed, identity: unit.identity, offersUAS: offersUAS)),
            maxPacketSize: StorageDescriptors.maxPacketSize(at: speed))
    }

    /// Whether the worker has nothing to do for this device.
    var isIdle: Bool { worker.pendingJobs == 0 }

    // MARK: - USBDevice

    func attach(to port: any USBPort) {
        self.port = port
        restart()
    }

    func detached() {
        port = nil
        _ = pipes.removeAll()
        pipes.setStreams(0, for: StorageDescriptors.statusEndpoint)
        restart()
    }

    func reset() {
        let waiting = pipes.removeAll()
        restart()
        for transfer in waiting { complete(transfer.id, .cancelled, 0) }
    }

    /// The state after power-on. A job that the worker has ends by itself.
    private func restart() {
        pipes.control.reset()
        unit.reset()
        resetTransport()
    }

    private func resetTransport() {
        era += 1
        cancellation?.cancel()
        command = nil
        lossTag = nil
        endPending(.cancelled)
        for transfer in pipes.reset() { complete(transfer.id, .failed, 0) }
        unit.takesManyCommands = pipes.usesUAS
    }

    func submit(_ transfer: consuming Transfer) {
        let id = transfer.id
        if case .control(let setup) = transfer.kind {
            control(transfer, setup)
        } else if !pipes.enqueue(transfer) {
            complete(id, .failed, 0)
        }
        advance()
    }

    func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        pipes.setStreams(count, for: endpoint)
    }

    func cancel(_ id: Transfer.ID) {
        if !cancelPending(id), pipes.remove(id) { complete(id, .cancelled, 0) }
    }

    // MARK: - Control pipe

    private func control(_ transfer: Transfer, _ setup: SetupPacket) {
        switch pipes.control.handle(transfer, setup) {
        case .answered(let completion, let change):
            port?.complete(completion)
            switch change {
            case .configuration, .alternateSetting: resetTransport()
            case .haltCleared where pipes.bulkOnly.phase == .broken:
                // Only a reset of the transport gets out of this.
                pipes.control.halt(StorageDescriptors.inEndpoint)
                pipes.control.halt(StorageDescriptors.outEndpoint)
            default: break
            }
        case .forDevice: classRequest(transfer, setup)
        }
    }

    /// The two requests of Bulk-Only Transport (3.1, 3.2).
    private func classRequest(_ transfer: Transfer, _ setup: SetupPacket) {
        let isOurs =
            setup.kind == .class && setup.recipient == .interface && setup.index == 0
            && setup.value == 0 && pipes.control.configuration != 0 && !pipes.usesUAS
        switch (setup.request, setup.direction, setup.length) {
        case (0xff, .out, 0) where isOurs:
            logger.debug("\(summary): reset of the bulk-only transport")
            resetTransport()
            complete(transfer.id, .completed, 0)
        case (0xfe, .in, 1...) where isOurs:
            // Get Max LUN: logical unit 0 alone.
            port?.complete(transfer.completion(sending: [0], for: setup))
        default:
            complete(transfer.id, .stalled, 0)
        }
    }

    // MARK: - Bulk pipes

    /// Uses waiting transfers for as long as that is possible.
    func advance() {
        while let step = isBusy ? pipes.nextWhileBusy() : pipes.next() { take(step) }
    }

    private func take(_ step: consuming StoragePipes.Step) {
        switch consume step {
        case .command(let transfer): receiveCommand(transfer)
        case .request(let transfer): receiveRequest(transfer)
        case .begin(let command): begin(command)
        case .receive(let transfer, let count): receiveData(transfer, count: count)
        case .send(let transfer, let count): sendData(transfer, count: count)
        case .status(let transfer, let count, let reply):
            complete(transfer.id, .completed, count)
            if let reply, lossTag == reply.tag { statusOfLossSent(reply) }
        case .unused(let transfer): complete(transfer.id, .completed, 0)
        case .fail(let transfer): complete(transfer.id, .failed, 0)
        case .refuse(let transfer): complete(transfer.id, .stalled, 0)
        case .babble(let transfer): complete(transfer.id, .babbled, transfer.buffer.count)
        case .phaseError(let transfer):
            complete(transfer.id, pipes.statusOfExcess, 0)
            if pipes.usesUAS { return finish(.dataPhaseError) }
            command = nil
            pipes.finishWithPhaseError()
        }
    }

    func complete(_ id: Transfer.ID, _ status: Transfer.Status, _ count: Int) {
        port?.complete(Transfer.Completion(id: id, status: status, transferred: count))
    }

    // MARK: - Commands

    private func receiveCommand(_ transfer: Transfer) {
        // One byte more than a CBW has is enough to see that it is none.
        let (bytes, count) = transfer.buffer.beginning
        guard let wrapper = pipes.receiveCommand(bytes.span.extracting(first: count)) else {
            logger.debug("\(summary): an invalid command block wrapper")
            complete(transfer.id, .stalled, 0)
            return
        }
        complete(transfer.id, .completed, CommandBlockWrapper.count)
        begin(unit.execute(wrapper.command, at: wrapper.logicalUnit), wrapper.command)
    }

    /// A request of UAS: commands wait for their turn, task management is done at once.
    private func receiveRequest(_ transfer: Transfer) {
        let (bytes, count) = transfer.buffer.beginning
        switch pipes.receiveRequest(bytes.span.extracting(first: count)) {
        case .none: break
        case .abort: forgetCommand()
        case .reset:
            forgetCommand()
            unit.resetUnit()
        case .refuse:
            logger.debug("\(summary): a request that names no stream")
            return complete(transfer.id, .stalled, 0)
        }
        complete(transfer.id, .completed, transfer.buffer.count)
    }

    /// The command at work was aborted. What the worker does for it ends by itself, and the next
    /// command waits for that.
    private func forgetCommand() {
        command = nil
        endPending(.completed)
        guard isBusy else { return }
        era += 1
        cancellation?.cancel()
    }

    /// A command of UAS has its turn.
    private func begin(_ command: UASTransport.Command) {
        var action = unit.execute(command.block, at: command.unit)
        if pipes.uas.isStale(command), action.concernsMedium { action = .check(.mediumNotPresent) }
        begin(action, command.block)
    }

    /// Compares the action with what the host expects, and starts it.
    private func begin(_ action: LogicalUnit.Action, _ block: CommandBlock) {
        guard pipes.begin(DataStage(action)) else { return }
        switch action {
        case .good: finish(nil)
        case .reply(let bytes):
            if bytes.isEmpty { finish(nil) } else { command = .reply(bytes) }
        case .read(let extent): command = .read(extent)
        case .write(let extent, let durably): command = .write(extent, durably: durably)
        case .compare(let extent): command = .compare(extent)
        case .receiveParameters: command = .parameters(block, [])
        case .perform(let job): perform(job)
        case .check(let sense): finish(sense)
        }
    }

    /// Ends the command: good, or with the sense data that say why not.
    func finish(_ error: SenseData?) {
        command = nil
        if pipes.usesUAS {
            // The sense data go with the status, so nothing is left to ask for.
            unit.senseWasSent()
            // The host is told that no more data move before it is told why.
            for transfer in pipes.takeUnused() { complete(transfer.id, .completed, 0) }
        } else if let error {
            unit.fail(error)
        }
        pipes.finish(error)
    }

    /// Work on the medium without data.
    func perform(_ job: LogicalUnit.MediumJob) {
        let image = image
        let durably = !unit.isWriteCacheEnabled
        let cancellation = Cancellation()
        let lostWrites = lostWrites
        // One at a time: a guest that asks for more waits for its turn like everybody else.
        if job == .flushInBackground && !isFlushingInBackground {
            isFlushingInBackground = true
            worker.run {
                image.carryOut(job, durably: durably, unless: cancellation, lostWrites)
            } completion: { [self] error in
                isFlushingInBackground = false
                guard let error else { return }
                tell("\(job.words) failed")
                unit.backgroundJobFailed(error)
            }
            finish(nil)
            return
        }
        self.cancellation = cancellation
        onWorker {
            image.carryOut(job, durably: durably, unless: cancellation, lostWrites)
        } then: { [self] error in
            // What was cut short by the loss of the medium means nothing.
            if cancellation.isCancelled { return finish(.mediumNotPresent) }
            if error == nil {
                unit.mediumJobEnded(job)
            } else {
                tell("\(job.words) failed")
                if pipes.usesUAS { lossTag = pipes.uas.current } else { lostWrites.forget() }
            }
            finish(error)
        }
    }

    /// With Bulk-Only Transport a host hears of an error for sure; of UAS it may have aborted the
    /// command before.
    private func statusOfLossSent(_ reply: UASReply) {
        lossTag = nil
        if case .check = reply.content { lostWrites.forget() }
    }

    // MARK: - Worker

    /// Runs a job on the worker while the bulk pipes wait, then goes on with the command.
    ///
    /// If the transport was reset or the command aborted meanwhile, the result is dropped. Jobs run in
    /// the order in which they were given, so those of later commands find the image as this one leaves
    /// it.
    func onWorker<Result: Sendable>(
        _ job: @escaping @Sendable () -> Result, then: @escaping (Result) -> Void
    ) {
        isBusy = true
        let era = era
        worker.run(job) { [self] result in
            isBusy = false
            if era == self.era {
                then(result)
                // A command that goes on with a further job sees the change by itself.
                if isChangingMedium, !isBusy { abandonCommand() }
            }
            advance()
        }
    }
}

extension TransferBuffer {
    /// The first 32 bytes, zeroes where there are fewer, and how many there are.
    fileprivate var beginning: (bytes: InlineArray<32, UInt8>, count: Int) {
        let bytes = InlineArray<32, UInt8> { (bytes: inout OutputSpan<UInt8>) in
            copy(into: &bytes)
            while !bytes.isFull { bytes.append(0) }
        }
        return (bytes, min(count, bytes.count))
    }
}

extension LogicalUnit.Action {
    /// Whether it is about what the medium holds.
    fileprivate var concernsMedium: Bool {
        switch self {
        case .good, .reply, .check: false
        case .read, .write, .compare, .receiveParameters, .perform: true
        }
    }
}
